#!/usr/bin/env bash
# Build the training environment for a CUDA machine: this checkout with the extra gpu (torch, spconv).
#
#   docker/train_environment.sh [--packages] [FOLDER]      (default: .train-env in the checkout)
#
# It needs Python 3.11 to 3.13 on Linux x86_64, an index of Python packages that pip reaches, and 10 GB: PyPI's torch
# brings its CUDA libraries along. The checkout goes in editable. With --packages it stops before that: an image's
# large layer, which a change of the code leaves as it is.
#
#   PYTHON=...    the interpreter to build it from (default: python3)
#   pip's own settings (PIP_INDEX_URL, pip.conf ...) hold as usual.
#
# Run again, it goes on where it stopped.
set -euo pipefail

packages_only=false
if [[ ${1:-} == --packages ]]; then
  packages_only=true
  shift
fi
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="${1:-$checkout/.train-env}"
python="${PYTHON:-python3}"

fail() {
  echo "error: $*" >&2
  exit 1
}

[[ $# -le 1 && $folder != -* ]] || fail "usage: docker/train_environment.sh [--packages] [FOLDER]"
[[ "$(uname -sm)" == "Linux x86_64" ]] || fail "this is $(uname -sm); spconv has wheels for Linux on x86_64 alone"
if [[ ! -f $folder/pyvenv.cfg && -e $folder && -n "$(ls -A "$folder")" ]]; then
  fail "$folder is there and is no virtual environment; choose another folder, or remove it"
fi
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' ||
  fail "$python is no Python 3.11 to 3.13; name one: PYTHON=/path/to/python3.12 docker/train_environment.sh"
"$python" -m venv "$folder" || fail "$python -m venv $folder failed; on Debian and Ubuntu: apt install python3-venv"

install() {
  "$folder/bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$checkout/constraints.txt" "$@" ||
    fail "pip could not install $*: its own words are above. Mostly the package index can't be reached" \
      "(PIP_INDEX_URL, proxy) or the disk is full (10 GB are needed); then run the same command again, it goes on"
}

echo "building $folder; torch takes a while"
if $packages_only; then
  # What pyproject.toml asks for, without the project itself.
  mapfile -t wanted < <("$folder/bin/python" - "$checkout/pyproject.toml" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["train"], *extras["gpu"]]:
    if not requirement.startswith(project["name"]):
        print(requirement)
PYTHON
  )
  install "${wanted[@]}"
  echo "the packages are in; run the same command without --packages to go on"
  exit 0
fi
install --editable "$checkout[gpu]"

echo "trying it"
"$folder/bin/python" -I -c 'import torch, detection3d.training.loop, detection3d.multitask' ||
  fail "$folder is built but does not work, see above; remove it and run the same command again"
echo "finished: $folder/bin/python"
