"""How a run is started, beside its config."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Start:
    """What the command line says of this start alone.

    Attributes:
        initialize_from: checkpoint, run folder or exported folder whose weights a new run takes where they fit.
        allow_changes: go on with a run whose settings were others.
        profile: first and last step to trace, counted from this start's first step as 1; None traces none.
    """

    initialize_from: Path | None = None
    allow_changes: bool = False
    profile: tuple[int, int] | None = None
