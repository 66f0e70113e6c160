"""Errors whose message is written for the person at the terminal: what was wrong, the value found, what to do.

The command-line tools print these without a traceback and exit with a status other than 0. Anything else is a defect
of ours and keeps its traceback.
"""

from pathlib import Path


def one_line(error: BaseException) -> str:
    """Return an error's message without line breaks, or its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


class UserError(ValueError):
    """Something the user can put right: a wrong setting, a missing file, an unusable input."""


class DataError(UserError):
    """A file, or one record of it, that can't be used.

    Args:
        path: the file or folder.
        reason: what is wrong with it, and what to do.
        record: index of the record (frame) in the file; None for the whole file.
    """

    def __init__(self, path: Path | str, reason: str, record: int | None = None) -> None:
        self.path = Path(path)
        self.reason = reason
        self.record = record
        where = str(path) if record is None else f"{path}, record {record}"
        super().__init__(f"{where}: {reason}")

    def __reduce__(self) -> tuple[type["DataError"], tuple[Path, str, int | None]]:
        """Rebuild from the parts, so that the error travels between processes."""
        return DataError, (self.path, self.reason, self.record)
