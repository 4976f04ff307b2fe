#!/usr/bin/env bash
# Free disk space on a GitHub-hosted runner: building the runtime image takes about 17 GB (the stage that installs, its copy
# in the image, uv's cache), and such a runner promises 14 GB. It removes toolchains that nothing here uses. Node for the
# actions stays; Python of actions/setup-python does not, so no later step may need it.
set -euo pipefail

# Elsewhere someone may need these tools.
if [ "${RUNNER_ENVIRONMENT:-}" != github-hosted ]; then
    echo "free-disk: removes toolchains as root, and therefore runs on GitHub-hosted runners only" \
        "(RUNNER_ENVIRONMENT=github-hosted); on your own, free 20 GB by hand and leave this step out." >&2
    exit 1
fi

df -h /
sudo rm -rf \
    /opt/ghc \
    /opt/hostedtoolcache \
    /usr/local/.ghcup \
    /usr/local/julia* \
    /usr/local/lib/android \
    /usr/local/share/chromium \
    /usr/local/share/powershell \
    /usr/share/dotnet \
    /usr/share/swift
df -h /
