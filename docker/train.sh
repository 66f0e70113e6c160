#!/usr/bin/env bash
# What the training image runs: a tool of tools/, named first, with its arguments.
#
#   docker/train.sh TOOL ARGUMENT...
#
#   DETECTION3D_PYTHON   the interpreter (default: .train-env/bin/python in the checkout)
#
# The container may be read-only and run as any user: caches of compiled code go to TMPDIR (/tmp), which must be
# writable: docker run --tmpfs /tmp:exec.
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${DETECTION3D_PYTHON:-$checkout/.train-env/bin/python}"
tools="$(cd "$checkout/tools" && for tool in *.py; do printf ' %s' "${tool%.py}"; done)"
if [[ $# -eq 0 || $1 == -* || ! -f $checkout/tools/$1.py ]]; then
  echo "usage: TOOL ARGUMENT..., where TOOL is one of$tools" >&2
  exit 2
fi
scratch="${TMPDIR:-/tmp}/detection3d-$(id -u)"
mkdir -p "$scratch" || {
  echo "error: no place for temporary files; add --tmpfs /tmp:exec to docker run" >&2
  exit 1
}
# torch and triton ask for the user's name and home, which a container's user may not have.
export HOME="$scratch" USER="${USER:-user}" NUMBA_CACHE_DIR="$scratch/numba" MPLCONFIGDIR="$scratch/matplotlib"
export TRITON_CACHE_DIR="$scratch/triton" TORCHINDUCTOR_CACHE_DIR="$scratch/inductor"
exec "$python" "$checkout/tools/$1.py" "${@:2}"
