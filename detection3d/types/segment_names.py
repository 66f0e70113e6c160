"""Names of segments, and how a synthetic one is told from a recorded one.

The name is the only thing that every file carries along: recordings, prepared stores, detections, ground truth and
submissions. So a synthetic segment says what it is in its name.
"""

import re
from collections.abc import Collection

SYNTHETIC_PREFIX = "synthetic-"

_LONGEST_START = 4000  # seconds
_DURATION = 20
_UNMARKED = re.compile(r"(\d{20})_(\d+)_000_(\d+)_000")


def synthetic_name(number: int) -> str:
    """Return a synthetic segment's name: the mark, then Waymo's form, `<number>_<start>_000_<end>_000`."""
    start = number % _LONGEST_START
    return f"{SYNTHETIC_PREFIX}{number:020d}_{start}_000_{start + _DURATION}_000"


def synthetic_segments(names: Collection[str]) -> int:
    """Count the synthetic segments of a data set.

    Segments from before there was a mark follow a rule that one real segment in some thousands follows by chance. So
    they are believed to be synthetic only where all unmarked segments follow it, and there are several.

    Args:
        names: of all segments, each once.

    Returns:
        How many of them are synthetic.
    """
    unmarked = [name for name in names if not name.startswith(SYNTHETIC_PREFIX)]
    marked = len(names) - len(unmarked)
    old = len(unmarked) > 1 and all(map(_follows_the_old_rule, unmarked))
    return marked + (len(unmarked) if old else 0)


def _follows_the_old_rule(name: str) -> bool:
    match = _UNMARKED.fullmatch(name)
    if match is None:
        return False
    number, start, end = map(int, match.groups())
    return start == number % _LONGEST_START and end == start + _DURATION
