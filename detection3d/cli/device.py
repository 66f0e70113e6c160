"""Which device a tool runs on."""

import torch

from detection3d.errors import UserError
from detection3d.training.launch import Launch, read_launch


def choose_device(wanted: str | None, launch: Launch | None = None) -> torch.device:
    """Return the device that the user named, or the best one here; on several ranks, each one's own of a node's GPUs.

    Args:
        wanted: as given with --device.
        launch: what the launcher says of this process; None asks the environment.

    Raises:
        UserError: there is no such device.
    """
    launch = read_launch() if launch is None else launch
    if wanted is None:
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UserError(f"--device {wanted}: not a device; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {wanted}: not supported; use cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {wanted}: torch {torch.__version__} sees no CUDA device here; use --device cpu")
    if device.type == "cuda" and launch.size > 1:
        device = torch.device("cuda", gpu_of_rank(device.index, launch, torch.cuda.device_count()))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {wanted}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


def gpu_of_rank(named: int | None, launch: Launch, visible: int) -> int:
    """Return the number of a rank's GPU among those that it sees.

    Args:
        named: N of --device cuda:N.
        launch: of one of several ranks.
        visible: number of GPUs that this process sees.

    Raises:
        UserError: the launcher does not say which one, there are too few, or the ranks of a node would share one.
    """
    if named is not None and launch.local_size != 1:
        raise UserError(f"--device cuda:{named}: each rank takes a GPU of its own; give --device cuda, or none")
    if named is not None:
        return named
    if launch.local_rank is None:
        raise UserError(
            f"rank {launch.rank} of {launch.size} has no LOCAL_RANK, which says which GPU is its own; start the ranks"
            " with torchrun, or set it"
        )
    if visible == 1:
        # The launcher gave each rank a GPU of its own, or there are too few: ranks tell when they meet.
        return 0
    if launch.local_rank >= visible:
        raise UserError(
            f"rank {launch.rank} is number {launch.local_rank} on this node (from 0), which shows it {visible} GPUs;"
            f" start at most {visible} ranks a node, and look at CUDA_VISIBLE_DEVICES"
        )
    return launch.local_rank


def refuse_several_ranks() -> None:
    """Stop where a launcher started several processes: each would do all of the work.

    Raises:
        UserError: this process is one of several.
    """
    ranks = read_launch().size
    if ranks > 1:
        raise UserError(
            f"started as {ranks} processes, but this tool shares its work out itself; start it without torchrun or srun"
        )
