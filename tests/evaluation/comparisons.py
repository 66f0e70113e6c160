"""Made comparisons: numbers whose outcome is known."""

from collections.abc import Mapping, Sequence

from detection3d.evaluation.comparison import (
    ClassScores,
    Comparison,
    FailedRun,
    MethodRuns,
    RunScores,
    Scores,
    Speed,
    choose_rate,
)

SPEED = Speed(0.97, (0.95, 0.99), 0.11, 0.1, 0.8, 30, "H200")
TELEMETRY = {"Positions in conflict": ([10.0, 20.0], [0.4, 0.3]), "Box loss": ([10.0, 20.0], [4.0, 0.5])}


def scores(ap: float, step: int = 100) -> Scores:
    """Two classes whose mean AP is `ap`, APH 0.1 less and error its complement."""
    parts = ((ap + 0.05, "VEHICLE"), (ap - 0.05, "PEDESTRIAN"))
    return Scores(step, tuple(ClassScores(name, value, value - 0.1, 1 - value) for value, name in parts))


def method(
    name: str,
    final: Mapping[int, float],
    *,
    early: float = 0.001,
    seeds: Sequence[int] = (0, 1, 2, 3),
    rates: Sequence[float] = (0.1, 0.2, 0.4),
    grid: Sequence[float] = (0.3, 0.5, 0.4),
    failed: tuple[FailedRun, ...] = (),
) -> MethodRuns:
    """A method with the given AP by seed, each having gained `early` over the last quarter."""
    runs = tuple(RunScores(seed, 0.2, scores(ap), scores(ap - early, 75), 9.0, "w") for seed, ap in final.items())
    choice = choose_rate(rates, [{9: ap} for ap in grid], [9])
    missing = tuple(seed for seed in seeds if seed not in final)
    return MethodRuns(name, {"kind": name}, choice, runs, failed, missing, SPEED, TELEMETRY)


def comparison(*methods: MethodRuns, seeds: Sequence[int] = (0, 1, 2, 3)) -> Comparison:
    return Comparison("sum", methods, tuple(seeds), (9,), 12)


BASE = {0: 0.5, 1: 0.55, 2: 0.45, 3: 0.52}
NOISE = {0: 0.002, 1: -0.003, 2: 0.001, 3: 0.0005}


def shifted(by: float) -> dict[int, float]:
    return {seed: ap + by + NOISE[seed] for seed, ap in BASE.items()}
