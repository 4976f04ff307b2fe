#!/usr/bin/env bash
# Build every overlay into one file for `kubectl apply -f`, where kustomize is not wanted: k8s/render.sh FOLDER
# `make manifests` calls this, and copies the two files that are committed to k8s/rendered.
set -euo pipefail
shopt -s nullglob

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
into=${1:?the folder to write to}
if command -v kubectl >/dev/null; then
    build=(kubectl kustomize)
elif command -v kustomize >/dev/null; then
    build=(kustomize build)
else
    echo "render.sh: neither kubectl nor kustomize is on PATH: install one of them" >&2
    exit 78
fi

mkdir -p "$into"
scratch=$(mktemp -d "$into/.render.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
for overlay in "$here"/overlays/*/; do
    name=$(basename "$overlay")
    # All or none: if kustomize refuses an overlay, the folder is unchanged.
    {
        echo "# Made by \`make manifests\` from k8s/overlays/$name, whose header says how to use it. Change that, not this."
        "${build[@]}" "$overlay"
    } >"$scratch/$name.yaml"
done
rm -f "$into"/*.yaml
mv "$scratch"/*.yaml "$into"
