import errno
import os
import subprocess
import sys

import pytest
import torch

from detection3d.cli.run import run
from detection3d.errors import DataError, UserError
from tests.conftest import ROOT


def ended(capsys, error: BaseException) -> tuple[int, str]:
    def main(_: object) -> int:
        raise error

    status = run(main)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("a: b"), 1, "error: a: b\n"),
        (DataError("f", "cut off", 3), 1, "error: f, record 3: cut off\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; what was finished before is intact\n"),
        (OSError(errno.ENOSPC, "full", "d"), 1, "error: d: full; the disk is full; free some space and run the same "),
        (FileExistsError(errno.EEXIST, "File exists", "d"), 1, "error: d: File exists; a file stands where a folder"),
        (PermissionError(errno.EPERM, "Not permitted", "d"), 1, "error: d: Not permitted; check the permissions\n"),
        (OSError(errno.ENAMETOOLONG, "Too long", "d"), 1, "error: d: Too long; choose a shorter one\n"),
        (ModuleNotFoundError("no", name="torch"), 1, "error: torch is not installed; this tool needs it: pip install"),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139.81 GiB of which"
                " 512.00 MiB is free. Process 1 has 139 GiB memory in use."
            ),
            1,
            "error: CUDA out of memory (2.50 GiB more were needed, 512.00 MiB of 139.81 GiB are free); lower training.",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
            1,
            "error: CUDA out of memory; lower training.batch_size or data.sweeps, set training.precision=bfloat16,",
        ),
    ],
)
def test_what_the_user_can_put_right_is_one_line(capsys, error, status, message):
    found, errors = ended(capsys, error)
    assert found == status
    assert errors.startswith(message)
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), RuntimeError("x"), OSError(errno.EIO, "bad"), ModuleNotFoundError("no", name="detection3d.gone")],
)
def test_our_own_defects_keep_their_traceback(capsys, error):
    with pytest.raises(type(error)):
        ended(capsys, error)


def test_the_place_of_an_error_on_demand(capsys, monkeypatch):
    monkeypatch.setenv("DETECTION3D_TRACEBACK", "1")
    _, errors = ended(capsys, UserError("a"))
    assert errors.startswith("Traceback")
    assert errors.endswith("error: a\n")


def test_a_reader_that_has_gone_is_no_defect():
    # What is printed stays in a buffer until the end, or, if it is long, does not.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    begin = "import sys, time; from detection3d.cli.run import run; time.sleep(0.3); "
    for code in ("run(lambda _: print('x' * 10**6) or 0)", "run(lambda _: print('x') or 0)", "run(lambda _: help())"):
        ends = f"def help(): print('x'); sys.exit(0)\n{begin}sys.exit({code})"
        command = ["bash", "-c", '"$0" -c "$1" | true; echo "${PIPESTATUS[0]}"', sys.executable, ends]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("141\n", ""), code


def test_the_status_of_the_tool_is_passed_on():
    assert run(lambda _: 7) == 7
