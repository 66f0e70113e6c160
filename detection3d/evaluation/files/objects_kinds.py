"""Tells what a file of boxes is from its first bytes; its name may say anything, or nothing."""

from enum import Enum
from pathlib import Path

import google_crc32c
import numpy as np

from detection3d.errors import DataError
from detection3d.evaluation.files.wire import BYTES, VARINT, read_tag, skip_value

HEAD = 1024
"""How many bytes it looks at."""


class Kind(Enum):
    """Kinds of files that hold boxes."""

    PARQUET = "parquet file"
    ARCHIVE = "tar archive"
    OBJECTS = "Objects message"
    SUBMISSION = "Submission message"


_ADVICE = "give a .parquet of ours, an Objects .bin, or Submission shards"
_SIGNATURES = {
    b"PK\x03\x04": "a zip archive (.npz, .pt ...)",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x93NUMPY": "a numpy array",
    b"\x89HDF": "an HDF5 file",
    b"\x28\xb5\x2f\xfd": "a zstandard archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"ARROW1": "an Arrow file",
}


def kind_of(path: Path, head: bytes) -> Kind:
    """Tell what a file is.

    Args:
        path: its name, for errors.
        head: its first bytes, `HEAD` of them or all.

    Returns:
        What it seems to be. A protobuf message doesn't name its type: its first field that the two known ones don't
        share decides.

    Raises:
        DataError: it is empty, or of a kind that is known and of no use here.
    """
    if not head:
        raise DataError(path, "the file is empty; write it again, or use .parquet, which can hold frames without boxes")
    if head.startswith(b"PAR1"):
        return Kind.PARQUET
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return Kind.ARCHIVE
    for signature, description in _SIGNATURES.items():
        if head.startswith(signature):
            raise DataError(path, f"the file is {description}; {_ADVICE}")
    if _is_record(head):
        raise DataError(path, f"the file is a TFRecord; prepare_waymo reads those. {_ADVICE.capitalize()}")
    if _is_text(head):
        raise DataError(path, f"the file is text, it begins with {head[:30]!r}; {_ADVICE}")
    return _message(head)


def _message(head: bytes) -> Kind:
    buffer = np.frombuffer(bytearray(head), np.uint8)  # writable, as the decoder's: compiled once
    position = 0
    while position < len(buffer):
        field, kind, position = read_tag(buffer, position, len(buffer))
        if position < 0:
            break
        if (field == 1 and kind == VARINT) or (field >= 3 and kind in (VARINT, BYTES)):
            return Kind.SUBMISSION
        if field == 1 and kind == BYTES:
            return Kind.OBJECTS
        position = skip_value(buffer, position, len(buffer), field, kind)
        if position < 0:
            break
    return Kind.OBJECTS


def _is_record(head: bytes) -> bool:
    """Tell whether a TFRecord's length and its checksum come first."""
    if len(head) < 12:
        return False
    checksum = google_crc32c.value(head[:8])
    masked = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
    return masked.to_bytes(4, "little") == head[8:12]


def _is_text(head: bytes) -> bool:
    return all(byte in b"\t\n\r" or 0x20 <= byte < 0x7F for byte in head)
