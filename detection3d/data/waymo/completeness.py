"""Whether a frame has all the range images that it should."""

from collections.abc import Set

from detection3d.data.waymo.malformed import MalformedFrameError
from detection3d.data.waymo.scan import scan_name
from detection3d.types.scene import Lidar


class SameScans:
    """Refuses a frame that lacks a range image which the frames before it have, or the other way round.

    The set of lidars and returns is a recording's: one that differs in the midst of it would be a smaller data set in
    silence. Whether the first frame is the damaged one can't be told; then its successor is named.
    """

    def __init__(self) -> None:
        self._first: Set[tuple[int, int]] | None = None

    def check(self, scans: Set[tuple[int, int]]) -> None:
        """Compare a frame's range images, given by lidar and return, with those of the first frame.

        Raises:
            MalformedFrameError: they differ.
        """
        if self._first is None:
            self._first = scans
        different = sorted(self._first ^ scans)
        if different:
            lidar, number = different[0]
            has, others = ("no", "have one") if different[0] in self._first else ("a", "have none")
            raise MalformedFrameError(
                f"there is {has} range image of {scan_name(lidar, number)}, the frames before {others}"
            )


def refuse_missing_lidars(calibrated: Set[int], scanned: Set[int]) -> None:
    """Refuse a frame, or a segment, with range images of some of its lidars; one without any lidar may pass.

    Args:
        calibrated: the lidars that have a calibration.
        scanned: those that have a range image.

    Raises:
        MalformedFrameError: some have a calibration and no range image.
    """
    missing = sorted(calibrated - scanned)
    if scanned and missing:
        names = ", ".join(Lidar(lidar).name for lidar in missing)
        raise MalformedFrameError(f"there is a calibration of {names}, but no range image, as of the other lidars")
