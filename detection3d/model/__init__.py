"""The detector: points to voxels, sparse backbone, bird's-eye neck, fork, three heads; targets, losses and decoding."""
