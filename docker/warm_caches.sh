#!/usr/bin/env bash
# Compile ahead what the evaluation compiles on first use (numba's machine code, Python's bytecode, matplotlib's list
# of fonts), so that an image needs neither the time nor a place to write it.
#
#   docker/warm_caches.sh PYTHON CACHE
#
# PYTHON is the interpreter of an environment from docker/evaluation_environment.sh, CACHE the folder to fill; give it
# to docker/evaluate.sh as DETECTION3D_CACHE. The files of detection3d/ get another time of change.
set -euo pipefail

[[ $# -eq 2 && -x ${1:-} ]] || {
  echo "error: usage: docker/warm_caches.sh PYTHON CACHE" >&2
  exit 1
}
python="$1"
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
mkdir -p "$2"
cache="$(cd "$2" && pwd)"
export NUMBA_CACHE_DIR="$cache/numba" MPLCONFIGDIR="$cache/matplotlib"
made="$(mktemp -d)"
trap 'rm -rf "$made"' EXIT

# numba asks for the sources' times to the microsecond; a layer keeps seconds. So they get one that survives.
find "$checkout/detection3d" -name '*.py' -newermt 1970-01-02 -exec touch -d '2000-01-01 00:00:00 UTC' {} +
"$python" - "$made" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np

from detection3d.evaluation.ground_truth import GroundTruth
from detection3d.evaluation.files.objects import write_detections, write_ground_truth
from detection3d.types.scene import Detections

folder = Path(sys.argv[1])
boxes = np.array([[10, 0, 1, 4, 2, 1.5, 0], [20, 5, 1, 4, 2, 1.5, 3]], np.float32)
types, scores = np.array([1, 2], np.uint8), np.array([0.9, 0.4], np.float32)
for suffix in (".bin", ".parquet"):
    write_detections(folder / f"d{suffix}", [Detections("s", 1, boxes, types, scores, np.zeros(2, np.bool_))])
    truth = GroundTruth("s", 1, boxes, types, types, np.full(2, 9, np.int32), np.zeros((2, 3), np.float32))
    write_ground_truth(folder / f"g{suffix}", [truth])
PYTHON
evaluate() {
  "$python" "$checkout/tools/waymo_metrics.py" \
    --predictions "$made/d.$1" --ground-truth "$made/g.$1" --output "$made/out" --backend "$2" >/dev/null
}
evaluate bin native
evaluate parquet native
evaluate bin official
chmod -R a+rX "$cache"
du -sh "$cache"
