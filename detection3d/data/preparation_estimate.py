"""How large a store will become, told before its preparation starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from detection3d.data.packing import BYTES_PER_POINT, pack
from detection3d.data.preparation_task import Source
from detection3d.data.store_manifest import StoreSettings

_ATTEMPTS = 3  # sources that can't be read say so when it is their turn


@dataclass(frozen=True)
class Estimate:
    """What the sources are expected to become.

    Attributes:
        frames: number of frames to keep.
        size: bytes.
    """

    frames: int
    size: int


def estimate(sources: Sequence[Source], settings: StoreSettings) -> Estimate | None:
    """Count a source's frames, decode its first one, and take the others to be like it for their size.

    Args:
        sources: what is to be prepared.
        settings: the choices of the store.

    Returns:
        The estimate; None where the first sources can't be read or don't tell their number of frames.
    """
    for source in sources[:_ATTEMPTS]:
        try:
            if source.count is None:
                return None
            frames = -(-source.count(source.path) // settings.every)
            first = next(iter(source.frames(settings)), None)
            own = source.fingerprint().size
            total = sum(other.fingerprint().size for other in sources)
        except Exception:
            continue
        if first is None or own == 0:
            continue
        packed, _ = pack(first, settings.returns, settings.reach)
        kept = frames * total / own
        return Estimate(round(kept), round(kept * len(packed) * BYTES_PER_POINT))
    return None
