"""Telling what a file is that should have been a TFRecord, so that the message can say what to do."""

_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "it is a gzip archive; unpack it first (gunzip, or tar xzf)"),
    (b"PK\x03\x04", "it is a zip archive; unpack it first"),
    (
        b"PAR1",
        "it is a parquet file, as Waymo's v2 uses; give the folder that holds its components",
    ),
    (b"ARROW1", "it is an Arrow file (feather); give the .tfrecord files of Waymo v1"),
    (b"\x89PNG", "it is a PNG picture; give the .tfrecord files of Waymo v1"),
    (b"\xff\xd8\xff", "it is a JPEG picture; give the .tfrecord files of Waymo v1"),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the data; fetch it with `git lfs pull`"),
    (b"<!doctype", "it is a web page, probably an error or a login instead of the download; get the file again"),
    (b"<html", "it is a web page, probably an error or a login instead of the download; get the file again"),
    (b"<?xml", "it is an XML answer, probably a storage server's error; check your access and get the file again"),
)


def describe_start(start: bytes) -> str:
    """Say what a file is by its first bytes, and what to do about it.

    Args:
        start: up to 512 bytes; a tar archive shows itself only at byte 257.
    """
    if start[257:262] == b"ustar":
        return "it is a tar archive; unpack it first (tar xf)"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, description in _KINDS:
        if start.startswith(magic) or text.startswith(magic):
            return description
    return f"it begins with {start[:8].hex(' ')}; give the .tfrecord files of Waymo v1, or get the file again"
