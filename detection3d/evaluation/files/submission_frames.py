"""Lists of frames as text: one frame a line, its context name and its timestamp in microseconds."""

import codecs
import re
from pathlib import Path

from detection3d.errors import DataError

_LOOKED_AT = 4096  # bytes
_NUMBER = re.compile(r"-?[0-9]+")


def is_frame_list(path: Path) -> bool:
    """Tell whether a file is text, as neither parquet nor a protobuf message of boxes is."""
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT)
    text = codecs.getincrementaldecoder("utf-8-sig")()  # takes a last letter that is cut off
    try:
        letters = text.decode(head)
    except UnicodeDecodeError:
        return False
    return bool(letters) and all(letter in "\t\n\r" or letter.isprintable() for letter in letters)


def read_frame_list(path: Path) -> set[tuple[str, int]]:
    """Read such a list; empty lines and those that begin with # don't count.

    Args:
        path: the file.

    Returns:
        `(context_name, timestamp_micros)` of each frame.

    Raises:
        DataError: a line isn't as it should be, or a frame occurs twice.
    """
    frames: set[tuple[str, int]] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        parts = line.replace(",", " ").split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) != 2 or not _NUMBER.fullmatch(parts[1]):
            raise DataError(path, f"line {number} is {line[:80]!r}; write CONTEXT_NAME TIMESTAMP_MICROS")
        key = parts[0], int(parts[1])
        if key in frames:
            raise DataError(path, f"line {number}: frame {key[0]} at {key[1]} occurs twice; name each frame once")
        frames.add(key)
    if not frames:
        raise DataError(path, "names no frame; write CONTEXT_NAME TIMESTAMP_MICROS, one frame a line")
    return frames
