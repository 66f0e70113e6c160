#!/usr/bin/env bash
# Build the evaluation environment: Waymo's official package beside this checkout, in a virtual environment.
#
#   docker/evaluation_environment.sh [--packages] [FOLDER]      (default: .evaluation-env in the checkout)
#
# With --packages it stops before this checkout goes in: an image's large layer, which a change of the code leaves as
# it is. Run again without it, it goes on.
#
# It needs Python 3.11 on Linux x86_64, an index of Python packages that pip reaches, and 2 GB. Waymo's package holds
# code compiled for TensorFlow 2.13 to 2.15, which exist up to Python 3.11 and refuse torch: hence an environment of
# its own. The checkout goes in editable, so that the environment runs the code as it stands here.
#
#   PYTHON=...    the interpreter to build it from (default: python3.11)
#   pip's own settings (PIP_INDEX_URL, pip.conf ...) hold as usual.
#
# Run again, it goes on where it stopped; finished, it does nothing. tests/ looks for the interpreter at
# .evaluation-env/bin/python, or where DETECTION3D_EVALUATION_PYTHON points.
set -euo pipefail

packages_only=false
if [[ ${1:-} == --packages ]]; then
  packages_only=true
  shift
fi
official='waymo-open-dataset-tf-2-12-0==1.6.7'
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
requirements="$checkout/docker/evaluation_requirements.txt"
folder="${1:-$checkout/.evaluation-env}"
python="${PYTHON:-python3.11}"

fail() {
  echo "error: $*" >&2
  exit 1
}

[[ $# -le 1 && $folder != -* ]] || fail "usage: docker/evaluation_environment.sh [--packages] [FOLDER]"
[[ "$(uname -sm)" == "Linux x86_64" ]] ||
  fail "this is $(uname -sm); Waymo's package holds code compiled for Linux on x86_64 alone"

# Written last: what it names is what was built.
finished="$folder/.finished"
contents="$official, detection3d at $checkout, $(sha256sum <"$requirements" | cut -c 1-64)"
if [[ -f $finished && "$(cat "$finished")" == "$contents" ]]; then
  echo "nothing to do: $folder is finished"
  exit 0
fi

if [[ ! -f $folder/pyvenv.cfg && -e $folder && -n "$(ls -A "$folder")" ]]; then
  fail "$folder is there and is no virtual environment; choose another folder, or remove it"
fi
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
  fail "$python is no Python 3.11, which TensorFlow 2.15 and detection3d have in common; install it, or name it:" \
    "PYTHON=/path/to/python3.11 docker/evaluation_environment.sh"
rm -f "$finished"
"$python" -m venv "$folder" ||
  fail "$python -m venv $folder failed; on Debian and Ubuntu: apt install python3.11-venv"

install() {
  "$folder/bin/python" -m pip --disable-pip-version-check install --quiet "$@" ||
    fail "pip could not install $*: its own words are above. Mostly the package index can't be reached" \
      "(PIP_INDEX_URL, proxy) or the disk is full (2 GB are needed); then run the same command again, it goes on"
}

echo "building $folder; TensorFlow takes a while"
# Both without their dependencies: the list is whole, and Waymo's package pins versions that contradict the list's.
install --no-deps -r "$requirements" "$official"
if $packages_only; then
  echo "the packages are in; run the same command without --packages to go on"
  exit 0
fi
install -e "$checkout"

echo "trying it"
TF_CPP_MIN_LOG_LEVEL=3 "$folder/bin/python" -I -c '
import detection3d.data.waymo, detection3d.evaluation.metrics
from waymo_open_dataset import v2
from waymo_open_dataset.metrics.ops import py_metrics_ops
from waymo_open_dataset.utils import frame_utils
' || fail "$folder is built but does not work, see above; remove it and run the same command again"

echo "$contents" >"$finished"
echo "finished: $folder/bin/python"
