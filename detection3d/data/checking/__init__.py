"""Check a data set before it is prepared: errors, frame by frame, and suspicions, judged over all of it.

`frame_errors` finds what makes a frame unusable. For the rest `clouds`, `fitting` and `motion` gather figures, which
`examination` collects by recording, and the `judge_...` modules name what they speak for.
"""

from detection3d.data.checking.examination import Evidence, Problem, examine, examine_frame
from detection3d.data.checking.judge import check, judge
from detection3d.data.checking.report import Report, Suspicion

__all__ = ["Evidence", "Problem", "Report", "Suspicion", "check", "examine", "examine_frame", "judge"]
