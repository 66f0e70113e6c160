"""What torch says when ranks lose each other, in words for the person who started them."""

from datetime import timedelta
from itertools import pairwise

from torch import distributed as dist

_AGAIN = "The last checkpoint is intact; run the same command to go on"
_TIMEOUTS = ("timed out", "timeout", "wait timeout")
_ENDS = (
    "connection closed by peer",
    "connection reset",
    "connection refused",
    "connection was likely closed",
    "broken pipe",
    "ncclremoteerror",
    "remote process",
    "failed to recv",
    "failed to send",
    "socket closed",
)


def explain_lost_rank(error: RuntimeError, patience: timedelta) -> str | None:
    """Return what an error in a collective means and what to do; None where it is of another kind.

    Args:
        error: as torch raised it.
        patience: how long a collective waits for the others.
    """
    text = str(error).lower()
    if not isinstance(error, dist.DistError) and not any(word in text for word in ("gloo", "nccl", "connection")):
        return None
    if any(word in text for word in _TIMEOUTS):
        return (
            f"another rank did not come to the same point within {patience.total_seconds() / 60:g} min, so it hangs or"
            f" waits for its data ({first_line(error)}); look at what the other ranks say. {_AGAIN}"
        )
    if any(word in text for word in _ENDS):
        return f"another rank has ended, look for its message ({first_line(error)}). {_AGAIN}"
    if "nccl" in text:
        return f"NCCL failed ({first_line(error)}); NCCL_DEBUG=INFO makes it tell more. {_AGAIN}"
    return None  # such as a collective of unequal sizes: a defect of ours, which keeps its traceback


def first_line(error: Exception) -> str:
    """Return the first line of what torch says, with the line in which NCCL gives its reason."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = next((after for line, after in pairwise(lines) if "Last error" in line), None)
    return lines[0] if reason is None else f"{lines[0]} {reason.strip()}"
