#!/usr/bin/env bash
# Makes room on a runner of GitHub's own: building the runtime image takes about 17 GB (the stage that installs, its copy
# in the image, uv's cache), and 14 GB are all that such a runner promises. What goes is toolchains that nothing here uses.
# Node for the actions is the runner's own and stays; Python of actions/setup-python does not, so nothing may need it later.
set -euo pipefail

# Anywhere else these are somebody's tools.
if [ "${RUNNER_ENVIRONMENT:-}" != github-hosted ]; then
    echo "free-disk: removes toolchains as root, and therefore runs on GitHub's own runners only" \
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
