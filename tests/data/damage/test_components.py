"""Damaged components of Waymo v2: missing, cut, foreign, rows that don't join, numbers that can't be."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection3d.data.waymo import read_component_segment
from detection3d.data.waymo.component_frames import COMPONENTS
from detection3d.errors import DataError
from detection3d.types.scene import Frame, Lidar
from tests.data.damage.segments import Prepared, prepare, segment
from tests.data.waymo.made_components import IMAGE, NAME, POSE, Tables, assert_same, change, components
from tests.data.waymo.made_components import write as write_components

NAN = float("nan")
BOX, EXTRINSIC = "[LiDARBoxComponent].", "[LiDARCalibrationComponent].extrinsic.transform"
INCLINATION = "[LiDARCalibrationComponent].beam_inclination."
TRANSFORM = "[VehiclePoseComponent].world_from_vehicle.transform"
LIDARS = 3
"""Rows of a frame in the component lidar; the second is TOP's."""

FileChange = Callable[[Path], object]


def rewrite(damage: Callable[[bytes], bytes]) -> FileChange:
    return lambda path: path.write_bytes(damage(path.read_bytes()))


FILES: dict[str, tuple[FileChange, str]] = {
    "missing": (lambda path: path.unlink(), "there is no such file"),
    "empty": (rewrite(lambda _: b""), "it isn't a whole parquet file"),
    "cut in the first bytes": (rewrite(lambda content: content[:7]), "it isn't a whole parquet file"),
    "cut in the middle": (rewrite(lambda content: content[: len(content) // 2]), "it isn't a whole parquet file"),
    "cut by a byte": (rewrite(lambda content: content[:-1]), "it isn't a whole parquet file"),
    "without its middle": (
        rewrite(lambda content: content[: len(content) // 3] + content[-len(content) // 3 :]),
        "it isn't a whole parquet file|its content is damaged",
    ),
    "a web page": (rewrite(lambda _: b"<html>Sign in</html>" * 99), "it isn't a whole parquet file"),
    "a foreign table": (lambda path: pq.write_table(pa.table({"a": [1]}), path), "it lacks the columns"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "it isn't a whole parquet file"),
    "a link to nowhere": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "there is no such file"),
}


def drop(component: str, keep: Callable[[int], bool]) -> Callable[[Tables], object]:
    return lambda tables: tables.update({component: [row for i, row in enumerate(tables[component]) if keep(i)]})


def repeat(component: str, row: int) -> Callable[[Tables], object]:
    return lambda tables: tables[component].append(tables[component][row])


def box(column: str, value: object) -> Callable[[Tables], object]:
    return change("lidar_box", 3, f"{BOX}{column}", value)


ROWS: dict[str, tuple[Callable[[Tables], object], str]] = {
    # Rows that don't join.
    "lidar without a frame": (drop("lidar", lambda row: row >= LIDARS), "vehicle_pose/.*frames have no row in lidar"),
    "lidar without a frame's TOP": (
        drop("lidar", lambda row: row != 4),
        "lidar/.*frame .*no range image of TOP return 1",
    ),
    "lidar without any FRONT": (
        drop("lidar", lambda row: row % LIDARS != 2),
        "lidar/.*a calibration of FRONT, but no range image",
    ),
    "lidar without rows": (drop("lidar", lambda _: False), "lidar/.*(it holds no rows|lacks the columns)"),
    "lidar with a row twice": (repeat("lidar", 2), "lidar/.*, record 9: .*two rows of FRONT"),
    "lidar_pose without a frame's": (
        drop("lidar_pose", lambda row: row != 1),
        "TOP return 1: .*no poses of its pixels",
    ),
    "lidar_pose with a row twice": (repeat("lidar_pose", 0), "lidar_pose/.*more than once"),
    "lidar_calibration without TOP": (
        drop("lidar_calibration", lambda row: row != 1),
        "TOP return 1: .*no calibration",
    ),
    "lidar_calibration with a row twice": (repeat("lidar_calibration", 0), "lidar_calibration/.*more than once"),
    "vehicle_pose without a frame's": (
        drop("vehicle_pose", lambda row: row != 1),
        "vehicle_pose/.*1 frames of lidar have no",
    ),
    "vehicle_pose with a row twice": (repeat("vehicle_pose", 1), "vehicle_pose/.*more than once"),
    "stats without a frame's": (drop("stats", lambda row: row != 2), "stats/.*1 frames of lidar have no row here"),
    "lidar_box with an object twice": (repeat("lidar_box", 3), "lidar_box/.*object 1.*more than once"),
    "lidar_box of a frame that isn't there": (
        change("lidar_box", 2, "key.frame_timestamp_micros", 7),
        "lidar_box/.*1 of its frames have no row in lidar, the first is 7",
    ),
    **{
        f"{component} of another segment": (
            change(component, 0, "key.segment_context_name", "other"),
            f"{component}/.*segments? .*other",
        )
        for component in COMPONENTS
    },
    # Images.
    "image of three channels": (
        change("lidar", 4, f"{IMAGE}.shape", [4, 10, 3]),
        "record 4: TOP return 1: .* has shape",
    ),
    "image of a column less": (
        change("lidar", 4, f"{IMAGE}.shape", [4, 9, 4]),
        "record 4: TOP return 1: .*says its shape",
    ),
    "image of negative shape": (
        change("lidar", 4, f"{IMAGE}.shape", [-4, -10, 4]),
        "record 4: TOP return 1: .*has shape",
    ),
    "image without shape": (change("lidar", 4, f"{IMAGE}.shape", None), "record 4: TOP return 1: .*no shape"),
    "image without values": (change("lidar", 4, f"{IMAGE}.values", None), "frame .*no range image of TOP return 1"),
    "no second return": (
        change("lidar", 5, "[LiDARComponent].range_image_return2.values", None),
        "frame .*no range image of FRONT return 2",
    ),
    "image of NaN": (
        change("lidar", 4, f"{IMAGE}.values", [NAN] * 160),
        "record 4: TOP return 1: 40 pixels have a range",
    ),
    "pixel poses of another shape": (
        change("lidar_pose", 1, f"{POSE}.shape", [10, 4, 6]),
        "the pixel poses have shape",
    ),
    "pixel poses of NaN": (
        change("lidar_pose", 1, f"{POSE}.values", [NAN] * 240),
        "record 4: TOP return 1: .*isn't finite",
    ),
    "no pixel poses": (change("lidar_pose", 1, f"{POSE}.values", None), "TOP return 1: .*no poses of its pixels"),
    # Poses and calibrations.
    "pose of NaN": (change("vehicle_pose", 1, TRANSFORM, [NAN] * 16), "vehicle_pose/.*, record 1: .*isn't a rotation"),
    "no pose": (change("vehicle_pose", 1, TRANSFORM, None), "vehicle_pose/.*, record 1: .*has 0 numbers"),
    "extrinsic of zeros": (change("lidar_calibration", 1, EXTRINSIC, [0.0] * 16), "record 1: TOP: .*isn't a rotation"),
    "inclinations too few": (change("lidar_calibration", 1, f"{INCLINATION}values", [0.1, 0.2]), "2 beam inclinations"),
    "inclination NaN": (
        change("lidar_calibration", 1, f"{INCLINATION}values", [0.1, 0.2, NAN, 0.4]),
        "TOP return 1: .*inclination that isn't finite",
    ),
    "inclinations' limit missing": (
        change("lidar_calibration", 0, f"{INCLINATION}min", None),
        "SIDE_LEFT return 1: .*its range is nan to 0.5",
    ),
    # Boxes.
    "box with NaN": (box("box.center.x", NAN), "label 1 .*'object 1'.* isn't finite"),
    "box without a number": (box("box.heading", None), "label 1 .*'object 1'.* isn't finite"),
    **{
        f"box of {axis} size {value:g}": (box(f"box.size.{axis}", value), "box 1 .*'object 1'.*sizes positive")
        for axis in "xyz"
        for value in (-2.0, 0.0)
    },
    "box absurdly far": (box("box.center.z", 1e20), "label 1 .* absurdly large"),
    "box of an undeclared type": (box("type", 77), "box 1 .* is of type 77; known are 0 to 4"),
    "box of a negative type": (box("type", -1), "lidar_box/.*frame"),
    "box of an undeclared difficulty": (box("difficulty_level.detection", 9), "box 1 .* is of difficulty 9"),
    "box with a negative number of points": (
        box("num_lidar_points_in_box", -5),
        "box 1 .* says that -5 points are in it",
    ),
    "box without type": (box("type", None), "object 1 has no .*type"),
    "speed of infinity": (box("speed.x", float("inf")), "label 1 .* isn't finite"),
}


def damage_file(component: str, damage: FileChange) -> Callable[[Path, str], object]:
    return lambda root, name: damage(root / component / f"{name}.parquet")


CASES: dict[str, str] = {
    **{f"{component} {name}": reason for component in COMPONENTS for name, (_, reason) in FILES.items()},
    **{name: reason for name, (_, reason) in ROWS.items()},
}
# A segment whose file of the component lidar is gone is no segment to the tool, see `test_a_segment_without_lidar`.
CASES.pop("lidar missing")
CASES["lidar a link to nowhere"] = "No such file or directory: '.*lidar/"
NAMES = {case: f"{number:03d}" for number, case in enumerate(CASES)}


def write(root: Path, case: str | None, name: str) -> Path:
    """Write a segment's components, and return the one of the lidars."""
    tables = components(segment(name))
    if case in ROWS:
        ROWS[case][0](tables)
    made = root / f"making {name}"
    write_components(made, tables)
    for file in made.rglob("*.parquet"):
        (root / file.parent.name).mkdir(parents=True, exist_ok=True)
        file.rename(root / file.parent.name / f"{name}.parquet")
    shutil.rmtree(made)
    if case is not None and case not in ROWS:
        component, damage = case.split(" ", 1)
        FILES[damage][0](root / component / f"{name}.parquet")
    return root / "lidar" / f"{name}.parquet"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """All damaged segments and two sound ones, prepared in one run."""
    folder = tmp_path_factory.mktemp("components")
    for case, name in NAMES.items():
        write(folder / "in", case, name)
    for name in ("a sound one", "z sound one"):
        write(folder / "in", None, name)
    return prepare(folder / "in", folder / "out")


@pytest.mark.parametrize("case", CASES)
def test_preparing_leaves_it_out_and_says_why(prepared: Prepared, case: str) -> None:
    found = prepared.reason(f"lidar/{NAMES[case]}.parquet")
    assert "unexpected" not in found
    # The reason names the file, where it isn't the source's own.
    with pytest.raises(DataError, match=CASES[case]):
        raise DataError(f"lidar/{NAMES[case]}.parquet", found)


def test_the_sound_ones_are_prepared_and_the_status_says_that_others_are_not(prepared: Prepared) -> None:
    prepared.assert_only_sound_ones_are_there(len(CASES))


def test_a_segment_without_lidar_is_told_and_fails_when_it_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "in", None, "sound")
    lost = write(tmp_path / "in", None, "lost")
    lost.unlink()
    assert "1 segments are passed over, as they have other components, but no lidar: lost" in (
        prepare(tmp_path / "in", tmp_path / "out").errors
    )
    with pytest.raises(DataError, match="there is no such file"):
        list(read_component_segment(lost))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Frame]]:
    path = write_components(tmp_path_factory.mktemp("sound"), components(segment(NAME)))
    return path, list(read_component_segment(path))


@settings(max_examples=150, deadline=None)
@given(
    component=st.sampled_from(COMPONENTS),
    place=st.floats(0, 1, exclude_max=True),
    bits=st.integers(1, 255),
    length=st.sampled_from([0, 1, 7, 400]),
)
def test_damaged_bytes_never_lose_a_frame_in_silence(
    sound: tuple[Path, list[Frame]], component: str, place: float, bits: int, length: int
) -> None:
    """A flipped byte (length 0) or a missing slice: an error, or as many frames, of which numbers may differ."""
    path, wanted = sound
    file = path.parent.parent / component / path.name
    whole = file.read_bytes()
    start = int(place * len(whole))
    flipped = bytes([whole[start] ^ bits]) if length == 0 else b""
    file.write_bytes(whole[:start] + flipped + whole[start + max(length, 1) :])
    try:
        found = list(read_component_segment(path))
    except DataError:
        return
    finally:
        file.write_bytes(whole)
    assert [frame.timestamp_micros for frame in found] == [frame.timestamp_micros for frame in wanted]
    for frame in found:
        assert np.isfinite(frame.points).all()
        assert set(np.unique(frame.lidar)) <= {Lidar.TOP, Lidar.FRONT, Lidar.SIDE_LEFT}


@pytest.mark.parametrize("component", COMPONENTS)
def test_page_checksums_are_compared_where_the_writer_added_them(tmp_path: Path, component: str) -> None:
    """Without compression, so that nothing else can notice a flipped bit; pyarrow's default is no checksums."""
    path = write(tmp_path, None, NAME)
    file = tmp_path / component / path.name
    table = pq.read_table(file)
    wanted = list(read_component_segment(path))
    pq.write_table(table, file, compression="none", use_dictionary=False, write_page_checksum=True)
    for found, frame in zip(read_component_segment(path), wanted, strict=True):
        assert_same(found, frame)
    column = pq.ParquetFile(file).metadata.row_group(0).column(table.num_columns - 1)
    content = bytearray(file.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"{component}/.*content is damaged .*(checksum|CRC)"):
        list(read_component_segment(path))
