#!/usr/bin/env bash
# What the evaluation image runs: tools/waymo_metrics.py with its arguments, or another tool that is named first.
#
#   docker/evaluate.sh [TOOL] ARGUMENT...
#
#   DETECTION3D_PYTHON   the interpreter (default: .evaluation-env/bin/python in the checkout)
#   DETECTION3D_CACHE    what docker/warm_caches.sh filled (default: none)
#
# The container may be read-only and run as any user: all it writes besides the results goes to TMPDIR (/tmp), which
# must be writable: docker run --tmpfs /tmp.
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${DETECTION3D_PYTHON:-$checkout/.evaluation-env/bin/python}"
tool=waymo_metrics
if [[ $# -gt 0 && -f $checkout/tools/${1:-}.py ]]; then
  tool="$1"
  shift
fi
scratch="$(mktemp -d)" || {
  echo "error: no place for temporary files; add --tmpfs /tmp to docker run" >&2
  exit 1
}
trap 'rm -rf "$scratch"' EXIT
# A copy, since numba takes no cache that it can't write to.
[[ -z ${DETECTION3D_CACHE:-} ]] || cp -R "$DETECTION3D_CACHE/." "$scratch"
export HOME="$scratch" NUMBA_CACHE_DIR="$scratch/numba" MPLCONFIGDIR="$scratch/matplotlib"
"$python" "$checkout/tools/$tool.py" "$@"
