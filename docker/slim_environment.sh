#!/usr/bin/env bash
# Take out of an environment what only building and testing other software needs: about a third of its size.
#
#   docker/slim_environment.sh FOLDER
#
# For images, in the same RUN as what built the environment: a later one would hide the files and keep their bytes.
# Headers, the packages' own tests, libclang (which only TensorFlow's build uses), TensorBoard's server, and compiled
# Python, which comes back for the modules that are run.
set -euo pipefail

[[ $# -eq 1 && -f ${1:-}/pyvenv.cfg ]] || {
  echo "error: usage: docker/slim_environment.sh FOLDER, where FOLDER is a virtual environment" >&2
  exit 1
}
cd "$1"
packages=(lib/python3.*/site-packages)
before="$(du -sm . | cut -f 1)"
rm -rf "${packages[0]}"/{tensorflow/include,pyarrow/include,clang,tensorboard_data_server}
find "${packages[0]}" -type d \( -name tests -o -name __pycache__ \) -prune -exec rm -rf {} +
echo "slimmed $PWD from $before to $(du -sm . | cut -f 1) MB"
