"""How every tool ends: a clear message and an exit status, never a traceback for what the user can put right."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from detection3d.errors import UserError
from detection3d.training.launch import host_name, read_launch

_OPTIONAL = ("torch", "tensorboard")  # of the extra "train"
_OUT_OF_MEMORY = "OutOfMemoryError"  # torch's, told by its name, as most tools run without torch
INTERRUPTED = 130  # 128 + SIGINT, as shells report it; a run that has saved may know better, see `training.stop`
UNHEARD = 141  # 128 + SIGPIPE


def run(main: Callable[[Sequence[str] | None], int], arguments: Sequence[str] | None = None) -> int:
    """Call `main(arguments)` and turn what the user can put right into one line on stderr.

    Args:
        main: a tool's main function; it returns the exit status.
        arguments: the command line without the program's name; None takes `sys.argv`.

    Returns:
        The exit status: what `main` returned, 1 after an error, 130 after Ctrl-C, 75 where a cluster
        stopped a training that has saved, 141 where stdout was closed. Set
        DETECTION3D_TRACEBACK=1 to see where an error came from.
    """
    try:
        try:
            status = main(arguments)
        except SystemExit:  # --help, and arguments that can't be used
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, where a closed pipe is understood
        return status
    except KeyboardInterrupt as error:
        _complain(str(error) or "interrupted; what was finished before is intact")
        return getattr(error, "status", INTERRUPTED)
    except UserError as error:
        _complain(str(error))
    except ModuleNotFoundError as error:
        if error.name not in _OPTIONAL:
            raise
        _complain(f"{error.name} is not installed; this tool needs it: pip install 'detection3d[train]'")
    except BrokenPipeError:
        # Whoever read the output has gone (`| head`). Nothing more can be said; Python would try to at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNHEARD
    except OSError as error:
        if error.errno not in _USUAL_ERRORS:
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        _complain(f"{where}{error.strerror}; {_USUAL_ERRORS[error.errno]}")
    except RuntimeError as error:
        if type(error).__name__ != _OUT_OF_MEMORY:
            raise
        _complain(_out_of_memory(str(error)))
    return 1


def _out_of_memory(message: str) -> str:
    """Return what torch's message tells, and what needs less; what is needed and free only where torch says it."""
    reason = message.split(". ")[0]
    needed = re.search(r"Tried to allocate ([\d.]+ [KMG]iB)", message)
    free = re.search(r"total capacity of ([\d.]+ [KMG]iB) of which ([\d.]+ [KMG]iB) is free", message)
    if needed and free:
        reason += f" ({needed[1]} more were needed, {free[2]} of {free[1]} are free)"
    return (
        f"{reason}; lower training.batch_size or data.sweeps, set training.precision=bfloat16, share the batch among"
        " more GPUs by torchrun, or end what else runs on the GPU. Checkpoints are intact"
    )


_USUAL_ERRORS = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EEXIST: "a file stands where a folder is expected",
    errno.ENOTDIR: "a file stands where a folder is expected",
    errno.ENAMETOOLONG: "choose a shorter one",
    errno.EISDIR: "a folder stands where a file is expected",
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EFBIG: "files may not become that large here; see `ulimit -f`, or choose another file system",
    errno.EDQUOT: "your disk quota is used up; free some space and run the same command again",
}


def _complain(message: str) -> None:
    if os.environ.get("DETECTION3D_TRACEBACK"):
        traceback.print_exc()
    # In one piece, as other ranks write to the same terminal.
    sys.stderr.write(f"error: {_who()}{message}\n")


def _who() -> str:
    """Return who complains, where a launcher started several processes."""
    try:
        launch = read_launch()
    except UserError:  # which is what this process ends with
        return ""
    return f"rank {launch.rank} of {launch.size} on {host_name()}: " if launch.size > 1 else ""
