#!/usr/bin/env bash
# Make the reference results again: bash docs/reference/run.sh [FOLDER]
# Frames go to data/reference, runs to FOLDER (default: runs/reference), both in the repository unless they begin with /;
# run it again to go on after an interruption. NAME.done beside a store says that it is complete.
#   CONFIGS="voxel pillar"   which of them
#   DEVICES=cuda:0,cuda:1    GPUs to use (default: cuda)
#   RUNS=4                   runs at a time (default: 3 for each GPU)
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-runs/reference} devices=${DEVICES:-cuda} data=data/reference
at_a_time=${RUNS:-$((3 * $(tr , '\n' <<< "$devices" | wc -l)))}

make_frames() { # NAME SEGMENTS SEED
  [ -e "$data/$1.done" ] && return
  python tools/make_synthetic.py --output "$data/raw/$1" --rig full --segments "$2" --frames 20 --interval 0.5 --seed "$3"
  python tools/prepare_waymo.py --input "$data/raw/$1" --output "$data/$1"
  touch "$data/$1.done"
  rm -r "$data/raw/$1"
}
make_frames train 200 100000
make_frames validation 40 900000

for config in ${CONFIGS:-voxel pillar}; do
  methods="sum graddrop"
  [ "$config" = voxel ] && methods="$methods random_sign"
  # shellcheck disable=SC2086
  python tools/compare_methods.py "reference_$config" --methods $methods --learning-rates 0.002 --seeds 3 \
    --speed-pairs 0 --keep-checkpoints --device "$devices" --processes "$at_a_time" --output "$runs/$config"
done
python docs/reference/collect.py "$runs"
