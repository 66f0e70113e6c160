"""One evaluation of files by one backend, in a process of its own that says how long each part took.

    PYTHON -m detection3d.benchmark.metrics_turn BACKEND PREDICTIONS GROUND_TRUTH

BACKEND is native, or official, which needs the interpreter of the evaluation environment. It prints a line of JSON.
"""

import json
import resource
import sys
import time
from pathlib import Path

from detection3d.benchmark.metrics_frames import random_frames
from detection3d.evaluation.files.objects import read_detections, read_ground_truth
from detection3d.evaluation.metric_config import MetricConfig
from detection3d.evaluation.metrics import evaluate
from detection3d.evaluation.official import evaluate_officially, official_versions


def main() -> None:
    """Evaluate, and print the figures."""
    backend, predictions_path, truth_path = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    config = MetricConfig()
    versions = official_versions() if backend == "official" else {}
    measure = evaluate_officially if backend == "official" else evaluate
    begin = time.perf_counter()
    measure(*random_frames(1, seed=1), config)  # all that happens once: compilation, or its cache, and the op
    warm = time.perf_counter()
    predictions, truth = read_detections(predictions_path), read_ground_truth(truth_path)
    read = time.perf_counter()
    metrics = measure(predictions, truth, config)
    done = time.perf_counter()
    figures = {
        "first_call_s": warm - begin,
        "read_s": read - warm,
        "evaluate_s": done - read,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "frames": metrics.frames,
        "areas": {row.name: [float(row.ap), float(row.aph)] for row in metrics.rows},
        "versions": versions,
    }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
