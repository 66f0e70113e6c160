"""Which device a tool runs on."""

import os

import torch

from detection3d.errors import UserError


def choose_device(wanted: str | None) -> torch.device:
    """Return the device that the user named, or the best one here; under torchrun, each process's own of a node's GPUs.

    Raises:
        UserError: there is no such device.
    """
    if wanted is None:
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and (number := os.environ.get("LOCAL_RANK")) is not None:
        wanted = f"cuda:{number}"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UserError(f"--device {wanted}: not a device; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {wanted}: not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {wanted}: torch {torch.__version__} sees no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {wanted}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


def refuse_several_ranks() -> None:
    """Stop where a launcher started several processes: each would do all of the work.

    Raises:
        UserError: WORLD_SIZE is more than 1.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        raise UserError(
            f"started as {ranks} processes, but this tool shares its work out itself; start it without torchrun"
        )
