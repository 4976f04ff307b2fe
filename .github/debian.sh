#!/usr/bin/env bash
# debian.sh TARGET...: run `.ci/run TARGET...` as root in a container of bare Debian 12, because the tests need its Slurm,
# Chromium and Python. .ci/run starts a container engine inside, which stores its images in a volume.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "$#" -eq 0 ]; then
    echo "debian.sh: name a target of the Makefile, for example: .github/debian.sh test-all" >&2
    exit 1
fi

# git refuses a checkout that belongs to another user.
sudo chown -R 0:0 .
docker run --rm --privileged --volume "$PWD:/mini-r1" --volume /var/tmp --workdir /mini-r1 debian:12 .ci/run "$@"
