"""A submission's files: shards of Waymo's `Submission` message, and the archive of them that is uploaded."""

import gzip
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detection3d.errors import UserError
from detection3d.evaluation.files.objects_bin import MAX_MESSAGE
from detection3d.evaluation.files.wire_encode import encode_frame
from detection3d.files import TEMPORARY, replace_file
from detection3d.protos import waymo_pb2
from detection3d.types.scene import Detections

_COMPRESSION = 5  # 9 takes three times as long and gains a hundredth
_RESULTS = waymo_pb2.Submission.DESCRIPTOR.fields_by_name["inference_results"].number


@dataclass(frozen=True)
class SubmissionFiles:
    """What `write_submission` wrote; `archive` is to be uploaded."""

    shards: tuple[Path, ...]
    archive: Path


def write_submission(
    folder: Path | str, message: waymo_pb2.Submission, detections: Sequence[Detections], shards: int = 4
) -> SubmissionFiles:
    """Write shards/NAME0, NAME1 ..., named as by Waymo's own tool, then NAME.tar.gz.

    Frames stay whole, so that the order of their boxes, which decides ties, is the same in any shard. Waymo's tool
    deals single objects.

    Args:
        folder: where to; made where it isn't there.
        message: all but the detections.
        detections: at most one for each frame; those without boxes leave no trace.
        shards: number of shards.

    Returns:
        The paths.

    Raises:
        UserError: there are shards or an archive already, more shards than frames with boxes, or a shard would be too
            large for protobuf.
    """
    folder = Path(folder)
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", message.unique_method_name).strip("._") or "submission"
    frames = [item for item in detections if len(item.boxes)]
    if not 1 <= shards <= len(frames):
        raise UserError(f"{shards} shards for {len(frames)} frames with boxes; give a number from 1 to {len(frames)}")
    archive, shard_folder = folder / f"{name}.tar.gz", folder / "shards"
    for path in (archive, shard_folder):
        if path.exists():
            raise UserError(f"{path} is there already; choose another folder, or remove it")
    shard_folder.mkdir(parents=True)
    paths = []
    for shard in range(shards):
        content = _shard(message, frames[shard::shards])
        if len(content) > MAX_MESSAGE:
            raise UserError(
                f"a shard of {len(content):,} bytes, but protobuf reads at most {MAX_MESSAGE:,}; use more shards: "
                f"{-(-shards * len(content) // MAX_MESSAGE) + 1}"
            )
        paths.append(shard_folder / f"{name}{shard}")
        replace_file(paths[-1], content)
    _pack(archive, paths)
    return SubmissionFiles(tuple(paths), archive)


def _shard(message: waymo_pb2.Submission, frames: Sequence[Detections]) -> bytes:
    parts = [encode_frame(item) for item in frames]
    header = _varint(_RESULTS << 3 | 2) + _varint(sum(map(len, parts)))
    return b"".join([message.SerializeToString(deterministic=True), header, *parts])


def _varint(value: int) -> bytes:
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    content.append(value)
    return bytes(content)


def _pack(archive: Path, paths: Sequence[Path]) -> None:
    """Write a .tar.gz; the same shards give the same bytes."""
    temporary = archive.with_name(f".{archive.name}.{os.getpid()}{TEMPORARY}")
    try:
        with (
            temporary.open("wb") as file,
            gzip.GzipFile(filename="", mode="wb", compresslevel=_COMPRESSION, fileobj=file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.USTAR_FORMAT) as content,
        ):
            for path in paths:
                entry = tarfile.TarInfo(path.name)
                entry.size = path.stat().st_size
                with path.open("rb") as shard:
                    content.addfile(entry, shard)
        temporary.replace(archive)
    finally:
        temporary.unlink(missing_ok=True)
