"""Damaged bytes of a TFRecord: an error with file, record and reason, or exactly the frames that were written."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection3d.data.waymo import read_segment
from detection3d.errors import DataError
from detection3d.types.scene import Frame
from tests.data.damage.segments import FRAMES, Prepared, prepare, segment_bytes
from tests.data.waymo.made_components import assert_same as assert_same_but_zones

HEADER = 12  # length and its checksum
TAIL = 4  # the payload's checksum

# Where a file may end inside a record, as a function of the record's size.
CUTS: dict[str, Callable[[int], int]] = {
    "after the first byte of the length": lambda size: 1,
    "before the last byte of the length": lambda size: 7,
    "after the length": lambda size: 8,
    "inside the length's checksum": lambda size: 10,
    "after the header": lambda size: HEADER,
    "after the first byte of the payload": lambda size: HEADER + 1,
    "in the middle of the payload": lambda size: size // 2,
    "before the last byte of the payload": lambda size: size - TAIL - 1,
    "after the payload": lambda size: size - TAIL,
    "before the last byte of the payload's checksum": lambda size: size - 1,
}

# The byte that is flipped.
FLIPS: dict[str, Callable[[int], int]] = {
    "first byte of the length": lambda size: 0,
    "last byte of the length": lambda size: 7,
    "length's checksum": lambda size: 9,
    "first byte of the payload": lambda size: HEADER,
    "middle of the payload": lambda size: size // 2,
    "last byte of the payload": lambda size: size - TAIL - 1,
    "payload's checksum": lambda size: size - 2,
}

# What else may happen to a file: the new content from the records, the record that is named, the reason.
OTHERS: dict[str, tuple[Callable[[list[bytes]], bytes], int | None, str]] = {
    "empty": (lambda records: b"", None, "the file is empty"),
    "a record twice": (lambda records: b"".join([*records, records[0]]), FRAMES, "occurs twice"),
    "rubbish behind": (lambda records: b"".join([*records, b"rubbish"]), FRAMES, "ends inside this record"),
    "much rubbish behind": (lambda records: b"".join([*records, b"rubbish " * 9]), FRAMES, "checksum of the length"),
    "rubbish between": (lambda records: b"rubbish!rubbish!".join(records), 1, "checksum of the length"),
    "rubbish before": (lambda records: b"".join([b"rubbish", *records]), None, "not a TFRecord file"),
    "zeros from the middle on": (
        lambda records: b"".join([records[0], bytes(len(records[1]) + len(records[2]))]),
        1,
        "checksum of the length",
    ),
    "compressed as TFRecords may be": (lambda records: zlib.compress(b"".join(records)), None, "not a TFRecord file"),
}


def cases() -> dict[str, tuple[Callable[[list[bytes]], bytes], int | None, str]]:
    made = dict(OTHERS)
    for record in range(FRAMES):
        for name, place in CUTS.items():
            made[f"cut {name}, record {record}"] = (cut(record, place), record, "the file ends inside this record")
        for name, place in FLIPS.items():
            in_header = "length" in name
            reason = "the checksum of the length" if in_header else "the checksum of its"
            if in_header and record == 0:
                made[f"flipped {name}, record 0"] = (flip(record, place), None, "not a TFRecord file")
            else:
                made[f"flipped {name}, record {record}"] = (flip(record, place), record, reason)
    return made


def cut(record: int, place: Callable[[int], int]) -> Callable[[list[bytes]], bytes]:
    return lambda records: b"".join([*records[:record], records[record][: place(len(records[record]))]])


def flip(record: int, place: Callable[[int], int]) -> Callable[[list[bytes]], bytes]:
    def change(records: list[bytes]) -> bytes:
        damaged = bytearray(records[record])
        damaged[place(len(damaged))] ^= 0x10
        return b"".join([*records[:record], bytes(damaged), *records[record + 1 :]])

    return change


CASES = cases()
NAMES = {case: f"{number:02d}.tfrecord" for number, case in enumerate(CASES)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """All damaged files and two sound ones, prepared in one run."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "in").mkdir()
    for case, (change, _, _) in CASES.items():
        (folder / "in" / NAMES[case]).write_bytes(change(segment_bytes(folder, NAMES[case])))
    for name in ("a sound one", "z sound one"):
        (folder / "in" / f"{name}.tfrecord").write_bytes(b"".join(segment_bytes(folder, name)))
    return prepare(folder / "in", folder / "out")


@pytest.mark.parametrize("case", CASES)
def test_reading_names_file_record_and_reason(tmp_path: Path, case: str) -> None:
    change, record, reason = CASES[case]
    path = tmp_path / "a.tfrecord"
    path.write_bytes(change(segment_bytes(tmp_path, "a")))
    where = "a.tfrecord" if record is None else f"a.tfrecord, record {record}"
    with pytest.raises(DataError, match=f"{where}: .*{reason}") as caught:
        list(read_segment(path))
    assert (caught.value.path, caught.value.record) == (path, record)


@pytest.mark.parametrize("case", CASES)
def test_preparing_leaves_it_out_and_says_why(prepared: Prepared, case: str) -> None:
    _, record, reason = CASES[case]
    found = prepared.reason(NAMES[case])
    assert found.startswith(": " if record is None else f", record {record}: ")
    assert reason in found


def test_the_sound_ones_are_prepared_and_the_status_says_that_others_are_not(prepared: Prepared) -> None:
    prepared.assert_only_sound_ones_are_there(len(CASES))


@pytest.mark.parametrize("kept", [(0, 1), (0, 2), (1, 2), (1,)])
def test_whole_records_that_are_gone_cannot_be_noticed(tmp_path: Path, kept: tuple[int, ...]) -> None:
    """As `detection3d.data.waymo.records` says: what is left is a sound file of fewer frames."""
    records = segment_bytes(tmp_path, "a")
    (tmp_path / "all").write_bytes(b"".join(records))
    (tmp_path / "some").write_bytes(b"".join(records[record] for record in kept))
    frames = list(read_segment(tmp_path / "all"))
    for found, record in zip(read_segment(tmp_path / "some"), kept, strict=True):
        assert_same_zones_too(found, frames[record])


def assert_same_zones_too(found: Frame, wanted: Frame) -> None:
    assert [zone.tolist() for zone in found.no_label_zones] == [zone.tolist() for zone in wanted.no_label_zones]
    assert_same_but_zones(replace(found, no_label_zones=()), wanted)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    folder = tmp_path_factory.mktemp("small")
    return folder / "damaged", segment_bytes(folder, "small")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_flip_cut_deletion_or_repetition_is_noticed(data: st.DataObject, small: tuple[Path, list[bytes]]) -> None:
    """But the loss of whole records, see above."""
    path, records = small
    whole = b"".join(records)
    place = data.draw(st.integers(0, len(whole) - 1), "place")
    length = data.draw(st.integers(1, len(whole) - place), "length")
    slice_of_it = whole[place : place + length]
    change = data.draw(st.sampled_from(["flip", "cut", "delete", "repeat", "zero"]), "change")
    if change == "flip":
        flipped = whole[place] ^ data.draw(st.integers(1, 255), "bits")
        damaged = whole[:place] + bytes([flipped]) + whole[place + 1 :]
    elif change == "cut":
        damaged = whole[:place]
    elif change == "delete":
        damaged = whole[:place] + whole[place + length :]
    elif change == "repeat":
        damaged = whole[: place + length] + slice_of_it + whole[place + length :]
    else:
        damaged = whole[:place] + bytes(length) + whole[place + length :]
    path.write_bytes(damaged)
    left = whole_records(damaged, records)
    if damaged == whole or (left and len(set(left)) == len(left)):
        assert len(list(read_segment(path))) == len(left)
        return
    with pytest.raises(DataError) as caught:
        list(read_segment(path))
    assert caught.value.path == path
    assert caught.value.reason
    assert caught.value.record is not None or place < HEADER or not damaged


def whole_records(content: bytes, records: list[bytes]) -> list[int]:
    """The numbers of the records that a file consists of; none where it is anything else."""
    found = []
    while content:
        fitting = [number for number, record in enumerate(records) if content.startswith(record)]
        if not fitting:
            return []
        found.append(fitting[0])
        content = content[len(records[fitting[0]]) :]
    return found
