#!/usr/bin/env bash
# Install Debian's or Ubuntu's packages and leave no package list behind: docker/system_packages.sh NAME...
set -euo pipefail

[[ $# -ge 1 && $1 != -* ]] || {
  echo "error: usage: docker/system_packages.sh NAME..." >&2
  exit 1
}
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet
apt-get install --quiet --yes --no-install-recommends "$@"
apt-get clean
rm -rf /var/lib/apt/lists/*
