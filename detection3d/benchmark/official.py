"""Waymo's own decoding, timed in a process beside this one: its packages and torch exclude each other."""

import contextlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from detection3d.errors import UserError

DECODER_SCRIPT = Path(__file__).with_name("official_decoder.py")
_ADVICE = (
    "it must be the interpreter of an environment with Waymo's official package; docker/evaluation_environment.sh "
    "FOLDER builds one, and FOLDER/bin/python is its interpreter"
)


class OfficialDecoder:
    """A process that decodes when it is told to, and waits without using the CPU meanwhile.

    Use it as a context; leaving that ends the process. It inherits this one's cores.

    Args:
        python: interpreter of the evaluation environment.

    Attributes:
        versions: of Python and the packages that decode, by name.

    Raises:
        UserError: it can't be started, or lacks a package.
    """

    def __init__(self, python: Path) -> None:
        self._python = python
        self._messages = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed on exit
        try:
            self._process = subprocess.Popen(
                # Isolated: neither PYTHONPATH nor the script's folder, which belong to other environments.
                [str(python), "-I", str(DECODER_SCRIPT), "turns"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                text=True,
                bufsize=1,
            )
        except OSError as error:
            self._messages.close()
            raise UserError(f"{python} can't be run ({error.strerror}); {_ADVICE}") from None
        try:
            self.versions: dict[str, str] = self._answer(_ADVICE)["ready"]
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "OfficialDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it holds nothing that could be lost
        self._process.communicate()
        self._messages.close()

    def time_turn(self, file: Path, frames: int) -> float | None:
        """Return the seconds that a frame takes, after a first one that doesn't count; None where there is no other.

        Args:
            file: a TFRecord of Waymo v1, or the parquet file of a v2 segment's component `lidar`.
            frames: to decode; fewer where the file holds fewer.

        Raises:
            UserError: the official code can't decode the file.
        """
        order = json.dumps({"file": str(file.absolute()), "frames": frames})
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; the reason is told below
            self._process.stdin.write(order + "\n")
        return self._answer(f"it was to decode {file}")["seconds_a_frame"]

    def _answer(self, hint: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        status = self._process.wait()
        self._messages.seek(0)
        said = [line.strip() for line in self._messages if line.strip()]
        reason = said[-1] if said else f"status {status}, without a word"
        raise UserError(f"the official decoder of {self._python} ended: {reason}; {hint}")
