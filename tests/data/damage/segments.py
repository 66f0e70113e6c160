"""Small segments in Waymo's formats to be damaged, and the preparation of a folder of them by the tool."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

from detection3d.cli import prepare_waymo
from detection3d.cli.run import run
from detection3d.data.store import Store, verify
from detection3d.data.waymo import RecordWriter
from detection3d.protos import waymo_pb2
from tests.data.waymo.conftest import build_frame
from tests.data.waymo.made_components import messages

FRAMES = 3


def segment(name: str, frames: int = FRAMES) -> list[waymo_pb2.Frame]:
    """Messages of a sound segment of v1."""
    made = messages(build_frame, frames)
    for frame in made:
        frame.context.name = name
    return made


def record_bytes(folder: Path, payloads: list[bytes]) -> list[bytes]:
    """What each payload takes in a TFRecord file: header, payload and checksum."""
    records = []
    for payload in payloads:
        with RecordWriter(folder / "one") as writer:
            writer.write(payload)
        records.append((folder / "one").read_bytes())
    (folder / "one").unlink()
    return records


def segment_bytes(folder: Path, name: str, frames: int = FRAMES) -> list[bytes]:
    """The records of a sound segment's file, in order."""
    return record_bytes(folder, [frame.SerializeToString() for frame in segment(name, frames)])


@dataclass(frozen=True)
class Prepared:
    """What the tool made of a folder.

    Attributes:
        output: the store.
        status: the exit status.
        errors: what it wrote on stderr.
    """

    output: Path
    status: int
    errors: str

    def reason(self, name: str) -> str:
        """Return the line that tells why a source was left out, without its name."""
        (line,) = [line.strip() for line in self.errors.splitlines() if line.strip().startswith(name)]
        return line.removeprefix(name)

    def assert_only_sound_ones_are_there(self, damaged: int) -> None:
        """The exit status tells of the damaged ones, and the two sound ones around them are whole."""
        assert self.status == 1
        assert f"{damaged} sources could not be used:" in self.errors
        store = Store.open(self.output)
        names = [store.key(index)[0] for index in range(len(store))]
        assert names == ["a sound one"] * FRAMES + ["z sound one"] * FRAMES
        assert verify(self.output) == []


def prepare(source: Path, output: Path) -> Prepared:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = run(prepare_waymo.main, ["--input", str(source), "--output", str(output), "--workers", "1"])
    return Prepared(output, status, errors.getvalue())
