"""Ask Waymo's op about random cases, in the evaluation environment.

PYTHONPATH=. .evaluation-env/bin/python -m tests.evaluation.official_answers OUTPUT.npz FIRST_SEED COUNT

Each case runs in a process of its own, forked when TensorFlow is loaded: the op aborts on some geometry.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from detection3d.evaluation.metrics import Metrics
from tests.evaluation.random_cases import digest, random_case


def metrics_as_arrays(metrics: Metrics) -> dict[str, np.ndarray]:
    """Everything that must be equal: [R] and [R, C] arrays."""
    curves = [row.curve for row in metrics.rows]
    return {
        "names": np.array([row.name for row in metrics.rows]),
        "ap": np.array([row.ap for row in metrics.rows], np.float32),
        "aph": np.array([row.aph for row in metrics.rows], np.float32),
        "true_positives": np.array([curve.true_positives for curve in curves], np.int32),
        "false_positives": np.array([curve.false_positives for curve in curves], np.int32),
        "false_negatives": np.array([curve.false_negatives for curve in curves], np.int32),
        "precision": np.array([curve.precision for curve in curves], np.float32),
        "heading_precision": np.array([curve.heading_precision for curve in curves], np.float32),
        "recall": np.array([curve.recall for curve in curves], np.float32),
    }


def differences(ours: Mapping[str, np.ndarray], official: Mapping[str, np.ndarray]) -> list[str]:
    """What isn't equal to the last bit."""
    result = []
    for name, expected in official.items():
        if ours[name].shape != expected.shape:
            result.append(f"{name}: shape {ours[name].shape}, officially {expected.shape}")
        elif not np.array_equal(ours[name], expected):
            rows = sorted({int(index[0]) for index in np.argwhere(ours[name] != expected)})
            result.append(f"{name}: {[str(ours['names'][row]) for row in rows[:4]]} and others, {len(rows)} in all")
    return result


def _answer(seed: int, path: Path) -> None:
    from detection3d.evaluation.official import evaluate_officially

    case = random_case(seed)
    metrics = evaluate_officially(case.predictions, case.ground_truth, case.config)
    np.savez(path, digest=digest(case), **metrics_as_arrays(metrics))


def main() -> None:
    from detection3d.evaluation.official import official_versions

    official_versions()
    output, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    answers: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + count):
            path = Path(folder) / f"{seed}.npz"
            child = os.fork()
            if child == 0:
                try:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                    _answer(seed, path)
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            if path.exists():
                with np.load(path) as arrays:
                    answers.update({f"{seed}/{name}": arrays[name] for name in arrays.files})
                path.unlink()
    np.savez(output, **answers)


if __name__ == "__main__":
    main()
