"""TFRecord framing, without TensorFlow.

A file is a plain sequence of records, each

    uint64 length | uint32 masked CRC-32C of the length's 8 bytes | payload | uint32 masked CRC-32C of the payload

in little-endian order, where masked = rotate_right(crc, 15) + 0xa282ead8 (mod 2^32). Source: the format's description
in tensorflow/core/lib/io/record_writer.h.

The checksums cover every byte, so damage within a record can't pass. The file has no count of its records, though, and
a record doesn't know its number: a file that was cut exactly between two records, or lost whole ones, is a sound file
of fewer, which no reader can notice. Its size, or the number of frames that a preparation prints for each segment,
tells. A record that occurs twice is noticed by its timestamp, see `detection3d.data.waymo.frames`.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import google_crc32c
import numpy as np
import numpy.typing as npt

from detection3d.data.waymo.file_kinds import describe_start
from detection3d.errors import DataError

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True)
class RecordIndex:
    """Where the payloads of a file lie, for access in any order.

    Attributes:
        path: the file.
        offsets: int64 [R], first byte of each payload.
        lengths: int64 [R], bytes.
    """

    path: Path
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of records, R."""
        return len(self.offsets)


def read_records(path: Path | str, verify: bool = True) -> Iterator[bytes]:
    """Yield the payloads of a file in order.

    Args:
        path: an uncompressed TFRecord file.
        verify: check each payload's checksum. A length's checksum is always checked: without it the reader is lost.

    Raises:
        DataError: the file isn't a TFRecord, ends in the middle of a record, or a checksum disagrees.
    """
    path = Path(path)
    with path.open("rb") as file:
        for record, offset, length in _walk(file, path):
            yield _read_payload(file, path, record, offset, length, verify)


def index_records(path: Path | str) -> RecordIndex:
    """Find every record by its header alone; payloads are skipped, so a file of a gigabyte takes milliseconds.

    Raises:
        DataError: as `read_records`, but for the payloads' checksums.
    """
    path = Path(path)
    with path.open("rb") as file:
        places = [(offset, length) for _, offset, length in _walk(file, path)]
    table = np.array(places, np.int64).reshape(-1, 2)
    return RecordIndex(path, table[:, 0].copy(), table[:, 1].copy())


def read_record(index: RecordIndex, record: int, verify: bool = True) -> bytes:
    """Read one payload.

    Args:
        index: from `index_records`.
        record: 0 <= record < R.
        verify: check the payload's checksum.

    Raises:
        DataError: the payload's checksum disagrees, or the file became shorter.
        IndexError: no such record.
    """
    if not 0 <= record < len(index):
        raise IndexError(f"{index.path} has {len(index)} records; there is no record {record}")
    with index.path.open("rb") as file:
        return _read_payload(
            file, index.path, record, int(index.offsets[record]), int(index.lengths[record]), verify=verify
        )


class RecordWriter:
    """Write a TFRecord file; it appears under its name when it is complete, or not at all.

    Use as a context manager. Records go to a neighbouring file with the suffix `.partial`, renamed at the end; if the
    block raises, that file is removed.

    Args:
        path: the file to write; an existing one is replaced at the end.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        self._file: BinaryIO | None = None

    def __enter__(self) -> "RecordWriter":
        self._file = self._partial.open("wb")
        return self

    def write(self, payload: bytes) -> None:
        """Append one record.

        Raises:
            ValueError: the writer isn't open.
        """
        if self._file is None:
            raise ValueError(f"{self.path} isn't open for writing: use `with RecordWriter(path) as writer`")
        length = struct.pack("<Q", len(payload))
        self._file.write(length + _CHECKSUM.pack(masked_crc32c(length)))
        self._file.write(payload)
        self._file.write(_CHECKSUM.pack(masked_crc32c(payload)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        complete = False
        try:
            with file:
                if kind is None:
                    file.flush()
                    os.fsync(file.fileno())
            complete = kind is None
        finally:
            # Also when the last flush finds the disk full.
            if complete:
                self._partial.replace(self.path)
            else:
                self._partial.unlink(missing_ok=True)


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C of `data`, masked as the format asks."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _walk(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield (record, offset of the payload, length) from the headers."""
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise DataError(path, "the file is empty (0 bytes); if it is a download, get it again")
    record, position = 0, 0
    while position < size:
        file.seek(position)
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise _truncated(path, record, position, f"{len(header)} of the 12 bytes of its header")
        length, checksum = _HEADER.unpack(header)
        if masked_crc32c(header[:8]) != checksum:
            raise _not_a_record(path, file, record, position)
        payload = position + _HEADER.size
        end = payload + length + _CHECKSUM.size
        if end > size:
            raise _truncated(path, record, position, f"{size - payload} of {length + _CHECKSUM.size} bytes")
        yield record, payload, length
        record, position = record + 1, end


def _read_payload(file: BinaryIO, path: Path, record: int, offset: int, length: int, verify: bool) -> bytes:
    file.seek(offset)
    payload = file.read(length)
    tail = file.read(_CHECKSUM.size)
    if len(payload) + len(tail) < length + _CHECKSUM.size:
        raise _truncated(path, record, offset - _HEADER.size, f"{len(payload)} of {length} bytes")
    if verify and masked_crc32c(payload) != _CHECKSUM.unpack(tail)[0]:
        raise DataError(
            path, f"the checksum of its {length} bytes disagrees: they are damaged; get the file again", record
        )
    return payload


def _truncated(path: Path, record: int, position: int, found: str) -> DataError:
    return DataError(
        path,
        f"the file ends inside this record, which begins at byte {position}: {found} are there; "
        "probably a download or copy was interrupted, get the file again",
        record,
    )


def _not_a_record(path: Path, file: BinaryIO, record: int, position: int) -> DataError:
    if record > 0:
        return DataError(
            path,
            f"the checksum of the length at byte {position} disagrees: the file is damaged from here on; get it again",
            record,
        )
    file.seek(0)
    return DataError(path, f"not a TFRecord file: {describe_start(file.read(512))}")
