#!/bin/sh
# Runs before `train` of docker-compose.yml, and explains Docker's "could not select device driver" before it appears. It
# runs without a GPU, and looks for the kernel module, which every container of the machine can see.
set -eu

proc=${1:-/proc}

if [ -e "$proc/driver/nvidia/version" ]; then
    echo "gpu-check: an NVIDIA driver is loaded. If Docker now says 'could not select device driver \"nvidia\"', the" \
        "NVIDIA Container Toolkit is missing: install nvidia-container-toolkit, run" \
        "'nvidia-ctk runtime configure --runtime=docker', and restart Docker."
elif grep -qi microsoft "$proc/version"; then
    echo "gpu-check: this is WSL, where the driver cannot be seen from here; Docker will say whether there is a GPU."
else
    echo "gpu-check: this machine has no NVIDIA driver, so nothing here can train on a GPU." >&2
    echo "gpu-check: without a GPU, run the demo: docker compose --profile cpu up" >&2
    exit 78
fi
