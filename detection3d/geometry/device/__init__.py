"""Boxes in torch, on any device: corners, points in boxes, rotated overlap, non-maximum suppression."""
