"""The memory that a training takes."""

import resource

import torch


def peak_memory(device: torch.device) -> float:
    """Return the peak use in GB, of the GPU or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
