import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detection3d.data.waymo.records import RecordWriter, index_records, masked_crc32c, read_record, read_records
from detection3d.errors import DataError


def slow_crc32c(data: bytes) -> int:
    """CRC-32C bit by bit: reflected polynomial 0x82f63b78, all ones before and after."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def write(path: Path, payloads: list[bytes]) -> Path:
    with RecordWriter(path) as writer:
        for payload in payloads:
            writer.write(payload)
    return path


def test_bytes_of_a_file_follow_the_format_to_the_letter(tmp_path: Path) -> None:
    expected = b""
    for payload in (b"abc", b""):
        for part in (struct.pack("<Q", len(payload)), payload):
            crc = slow_crc32c(part)
            expected += part + struct.pack("<I", (((crc >> 15) | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)
    assert write(tmp_path / "a", [b"abc", b""]).read_bytes() == expected


def test_checksum_of_the_standard_check_string() -> None:
    assert slow_crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4 and the usual check value
    crc = 0xE3069283
    assert masked_crc32c(b"123456789") == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@given(payloads=st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_what_is_written_is_read(payloads: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write(tmp_path_factory.mktemp("records") / "a", payloads)
    assert list(read_records(path)) == payloads
    index = index_records(path)
    assert index.lengths.tolist() == [len(payload) for payload in payloads]
    order = np.random.default_rng(0).permutation(len(payloads)).tolist()
    assert [read_record(index, record) for record in order] == [payloads[record] for record in order]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    good = write(tmp_path / "good", [b"first", b"second record"]).read_bytes()
    bad = tmp_path / "bad"
    for position in range(len(good)):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[position] ^= 1 << bit
            bad.write_bytes(damaged)
            with pytest.raises(DataError, match=r"checksum|not a TFRecord"):
                list(read_records(bad))


def test_every_truncation_is_noticed_but_between_records(tmp_path: Path) -> None:
    good = write(tmp_path / "good", [b"first", b"second record"]).read_bytes()
    first = 16 + len(b"first")
    bad = tmp_path / "bad"
    for length in set(range(len(good))) - {0, first}:
        bad.write_bytes(good[:length])
        with pytest.raises(DataError, match="ends inside this record") as caught:
            list(read_records(bad))
        assert caught.value.record == int(length > first)
        with pytest.raises(DataError, match="ends inside this record"):
            index_records(bad)
    bad.write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        list(read_records(bad))


def test_without_verification_a_damaged_payload_passes(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [b"first", b"second"])
    content = bytearray(path.read_bytes())
    content[12] ^= 1
    path.write_bytes(content)
    assert list(read_records(path, verify=False)) == [b"girst", b"second"]
    index = index_records(path)
    with pytest.raises(DataError, match="checksum") as caught:
        read_record(index, 0)
    assert caught.value.record == 0
    assert read_record(index, 1) == b"second"  # the damage of one record doesn't reach the next
    with pytest.raises(IndexError, match="no record 2"):
        read_record(index, 2)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\3abc", "gzip"),
        (b"\n <!DOCTYPE HTML><html><title>Sign in</title>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "LFS"),
        (b"PAR1\x15\x04\x15\x10\x15\x14\x4c\x15", "parquet"),
        (b"segment-1/\0" + bytes(246) + b"ustar  \0" + bytes(100), "tar archive"),
        (b"some other text, long enough", "begins with 73 6f 6d 65"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, start: bytes, expected: str) -> None:
    path = tmp_path / "segment.tfrecord"
    path.write_bytes(start)
    with pytest.raises(DataError, match=rf"segment.tfrecord: not a TFRecord file: .*{expected}") as caught:
        next(read_records(path))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_writer_leaves_nothing_half_done(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [b"old"])

    def fail() -> None:
        with RecordWriter(path) as writer:
            writer.write(b"new")
            assert list(read_records(path)) == [b"old"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(read_records(path)) == [b"old"]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="isn't open"):
        RecordWriter(path).write(b"x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a", [b"old"])
    writer = RecordWriter(path)
    # The partial file is a link to a device that is always full.
    partial = tmp_path / f"a.{os.getpid()}.partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"), writer:
        writer.write(b"new" * 10)
    assert list(tmp_path.iterdir()) == [path]
    assert list(read_records(path)) == [b"old"]
