"""Argoverse 2: the vehicle's pose at any time, and the objects' velocities, which the data set doesn't state."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detection3d.errors import DataError
from detection3d.types.scene import Float64Array

# Poses come every 1 to 10 ms, annotations every 100 ms. A pose in a wider gap, or the velocity over one, is a guess.
_WIDEST_POSE_GAP_NS = 200_000_000
_WIDEST_TRACK_GAP_NS = 250_000_000


@dataclass(frozen=True)
class Poses:
    """Where the vehicle was.

    Attributes:
        path: the file they come from.
        timestamp_ns: int64 [P], ascending.
        quaternions: float64 [P, 4], unit, w x y z, egovehicle to city.
        translations: float64 [P, 3], metres.
    """

    path: Path
    timestamp_ns: npt.NDArray[np.int64]
    quaternions: Float64Array
    translations: Float64Array

    @staticmethod
    def from_quaternions(
        path: Path, timestamp_ns: npt.NDArray[np.int64], quaternions: Float64Array, translations: Float64Array
    ) -> "Poses":
        """Sort and check the rows of a file.

        Raises:
            DataError: there are none, or a quaternion isn't a rotation, or a number isn't finite.
        """
        if len(timestamp_ns) == 0:
            raise DataError(path, "holds no poses; download it again")
        length = np.linalg.norm(quaternions, axis=1)
        bad = np.flatnonzero(~((np.abs(length - 1) < 1e-3) & np.isfinite(translations).all(axis=1)))
        if len(bad):
            row = int(bad[0])
            found = f"{quaternions[row].tolist()}, {translations[row].tolist()}"
            raise DataError(path, f"isn't a rotation and a translation: {found}; download the file again", row)
        order = np.argsort(timestamp_ns, kind="stable")
        return Poses(path, timestamp_ns[order], (quaternions / length[:, None])[order], translations[order])

    def at(self, timestamp_ns: int, sweep: Path | None = None) -> Float64Array:
        """Return the pose at a time, float64 [4, 4], egovehicle to city, interpolated between its neighbours.

        Args:
            timestamp_ns: nanoseconds.
            sweep: the file that asks, for the message.

        Raises:
            DataError: the poses don't cover that time.
        """
        after = int(np.searchsorted(self.timestamp_ns, timestamp_ns))
        if after < len(self.timestamp_ns) and self.timestamp_ns[after] == timestamp_ns:
            return _matrix(self.quaternions[after], self.translations[after])
        covered = 0 < after < len(self.timestamp_ns)
        if not covered or self.timestamp_ns[after] - self.timestamp_ns[after - 1] > _WIDEST_POSE_GAP_NS:
            raise DataError(
                sweep or self.path,
                f"no pose near {timestamp_ns} ns: {self.path.name} covers {self.timestamp_ns[0]} to "
                f"{self.timestamp_ns[-1]} ns; download that file again",
            )
        start, end = self.timestamp_ns[after - 1], self.timestamp_ns[after]
        share = float(timestamp_ns - start) / float(end - start)
        first, second = self.quaternions[after - 1], self.quaternions[after]
        # A rotation has two quaternions, q and -q; over some milliseconds the chord is as good as the arc.
        second = second if first @ second >= 0 else -second
        quaternion = (1 - share) * first + share * second
        translation = (1 - share) * self.translations[after - 1] + share * self.translations[after]
        return _matrix(quaternion / np.linalg.norm(quaternion), translation)


@dataclass(frozen=True)
class Tracks:
    """Annotated centres of a log, A of them.

    Attributes:
        timestamp_ns: int64 [A].
        ids: A track ids.
        centres: float64 [A, 3], metres, egovehicle frame at the timestamp.
    """

    timestamp_ns: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    centres: Float64Array

    def velocities(self, poses: Poses) -> Float64Array:
        """Return velocities over the ground, float64 [A, 3], m/s, in the axes of the egovehicle frame.

        The difference quotient of the centres in the city frame, from the track's annotation before to the one after;
        at the end of a track, or where the next one is more than 0.25 s away, from one side; 0 where neither is near.
        """
        times, index = np.unique(self.timestamp_ns, return_inverse=True)
        pose = np.stack([poses.at(int(time)) for time in times])[index] if len(times) else np.zeros((0, 4, 4))
        city = np.einsum("aij,aj->ai", pose[:, :3, :3], self.centres) + pose[:, :3, 3]
        velocity = np.zeros_like(self.centres)
        for rows in self._rows_of_tracks():
            for place, row in enumerate(rows):
                first = self._near(row, rows[max(place - 1, 0)])
                last = self._near(row, rows[min(place + 1, len(rows) - 1)])
                elapsed = int(self.timestamp_ns[last] - self.timestamp_ns[first])
                if elapsed > 0:
                    velocity[row] = (city[last] - city[first]) / (elapsed * 1e-9)
        return np.einsum("aji,aj->ai", pose[:, :3, :3], velocity)

    def _rows_of_tracks(self) -> list[list[int]]:
        tracks: dict[str, list[int]] = defaultdict(list)
        for row in np.argsort(self.timestamp_ns, kind="stable").tolist():
            tracks[self.ids[row]].append(row)
        return list(tracks.values())

    def _near(self, row: int, neighbour: int) -> int:
        gap = abs(int(self.timestamp_ns[neighbour]) - int(self.timestamp_ns[row]))
        return neighbour if gap <= _WIDEST_TRACK_GAP_NS else row


def _matrix(quaternion: Float64Array, translation: Float64Array) -> Float64Array:
    """Return the [4, 4] pose of a unit quaternion (w, x, y, z) and a translation."""
    w, x, y, z = quaternion
    pose = np.eye(4)
    pose[:3, :3] = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    pose[:3, 3] = translation
    return pose
