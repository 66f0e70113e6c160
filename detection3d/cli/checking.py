"""Show what a check of a data set found."""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detection3d.data.checking import Evidence, Report
    from detection3d.data.preparation import Source
    from detection3d.data.store import StoreSettings

_SHOWN = 5  # errors of a kind


def check_and_report(sources: "Sequence[Source]", settings: "StoreSettings", workers: int | None) -> int:
    """Read the sources, and say what is wrong with them.

    Returns:
        The exit status: 1 if there are errors.
    """
    from detection3d.data.checking import check

    done = 0

    def show(evidence: "Evidence") -> None:
        nonlocal done
        done += 1
        errors = f", {evidence.counts.total()} errors" if evidence.counts else ""
        print(f"{done} of {len(sources)}: {evidence.recording}, {evidence.frames} frames{errors}", flush=True)

    report = check(sources, settings, workers, show)
    sys.stdout.flush()  # what follows on stderr comes after it
    _print_errors(report)
    for suspicion in report.suspicions:
        print(f"suspicion ({suspicion.name}): {suspicion.message}\n    {suspicion.evidence}")
    content = f"{report.recordings} recordings, {report.frames} frames, {report.boxes} boxes"
    print(f"checked {content}: {report.errors} errors, {len(report.suspicions)} suspicions")
    return 1 if report.errors else 0


def _print_errors(report: "Report") -> None:
    shown: Counter[str] = Counter()
    for problem in report.problems:
        shown[problem.kind] += 1
        if shown[problem.kind] > _SHOWN:
            continue
        frame = "" if problem.frame is None else f", frame {problem.frame}"
        when = "" if problem.timestamp is None else f" (timestamp {problem.timestamp})"
        print(f"error ({problem.kind}): {problem.recording}{frame}{when}: {problem.message}", file=sys.stderr)
    for kind, count in report.counts.items():
        if count > _SHOWN:
            print(f"error ({kind}): {count - min(shown[kind], _SHOWN)} more like these", file=sys.stderr)
