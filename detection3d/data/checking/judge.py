"""Judge what was seen of all recordings together."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from detection3d.data.checking import judge_boxes, judge_clouds, judge_motion
from detection3d.data.checking.examination import Evidence, examine
from detection3d.data.checking.fitting import no_fit
from detection3d.data.checking.motion import join
from detection3d.data.checking.report import Report, Suspicion
from detection3d.data.preparation_pool import available_cores, run_tasks
from detection3d.data.preparation_task import Source
from detection3d.data.store_manifest import StoreSettings


def check(
    sources: Sequence[Source],
    settings: StoreSettings | None = None,
    workers: int | None = 1,
    progress: Callable[[Evidence], None] = lambda evidence: None,
) -> Report:
    """Read sources as a preparation would, and say what is wrong with them; nothing is written.

    Args:
        sources: what to read.
        settings: the choices of the store, of which frames and returns are heeded.
        workers: number of processes; None: one for each core.
        progress: called after each source.

    Raises:
        UserError: a worker was killed.
    """
    task = partial(examine, settings=settings or StoreSettings())
    evidence = []
    for seen in run_tasks(task, sources, workers or available_cores()):
        progress(seen)
        evidence.append(seen)
    return judge(evidence)


def judge(evidence: Sequence[Evidence]) -> Report:
    """Make a report of what was seen; the order of the recordings makes no difference."""
    evidence = sorted(evidence, key=lambda seen: seen.recording)
    return Report(
        recordings=len(evidence),
        frames=sum(seen.frames for seen in evidence),
        boxes=sum(seen.boxes for seen in evidence),
        problems=tuple(problem for seen in evidence for problem in seen.problems),
        counts=sum((seen.counts for seen in evidence), Counter[str]()),
        suspicions=tuple(_suspicions(evidence)),
    )


def _suspicions(evidence: Sequence[Evidence]) -> list[Suspicion]:
    """Judge from the ground up: what rests on something that is wrong already isn't judged."""
    clouds = [cloud for seen in evidence for cloud in seen.clouds]
    fit = sum((seen.fit for seen in evidence), no_fit())
    labels = np.concatenate([np.zeros((0, 5)), *(seen.labels for seen in evidence)])
    motion = join([seen.motion for seen in evidence])

    absent = judge_clouds.judge_presence(clouds, sum(seen.frames for seen in evidence))
    if absent:
        return absent
    times, unit = judge_motion.judge_times(motion)
    found = [*judge_clouds.judge_intensity(clouds), *judge_clouds.judge_reach(clouds), *times]
    found += judge_motion.judge_tracks(motion)
    up = judge_clouds.judge_up(clouds)
    if up:
        return [*up, *found]
    sizes = judge_boxes.judge_sizes(labels)
    swapped = any(size.message == judge_boxes.SWAPPED for size in sizes)
    degrees = judge_boxes.look_like_degrees(labels)
    place, reading = judge_boxes.judge_place(fit, degrees, swapped)
    if sizes and not swapped:  # such boxes hold more points when they are turned or moved, whatever is right
        place, reading = [suspicion for suspicion in place if suspicion.name == "axes"], None
    if any(suspicion.name == "axes" for suspicion in place):
        turned = any(suspicion.name == "heading" for suspicion in place)
        return [*place, *sizes, *([] if turned else judge_boxes.judge_wrapping(labels)), *found]
    found += judge_clouds.judge_ground(clouds)
    if not place and not sizes:
        found += judge_boxes.judge_counts(fit)
    poses = judge_motion.judge_poses(motion)
    directions: list[Suspicion] = []
    if not poses:
        found += judge_motion.judge_drive(motion) + judge_motion.judge_velocities(motion.steps, unit)
        directions = judge_motion.judge_directions(motion.steps, unit, degrees, reading)
    headings = [suspicion for suspicion in place if suspicion.name == "heading"]
    place = [suspicion for suspicion in place if suspicion.name != "heading"]
    # Motion tells more than points do, as it knows front from rear; both tell more than the numbers alone.
    heading = directions or headings or judge_boxes.judge_wrapping(labels)
    return [*sizes, *place, *heading, *poses, *found]
