#!/usr/bin/env bash
# image-size.sh IMAGE: print its size and that of each layer, newest first, as Markdown for a job's summary.
set -euo pipefail

image=$1
bytes=$(docker image inspect --format '{{.Size}}' "$image")
echo "### $image: $(numfmt --to=si --format=%.1f "$bytes")B"
echo
echo "| size | layer |"
echo "| ---: | --- |"
# Empty layers are instructions like ENV. A command may contain characters that end a cell or a code span.
docker history --no-trunc --format '{{.Size}}\t{{.CreatedBy}}' "$image" |
    awk -F'\t' 'NF == 2 && $1 != "0B" {
        gsub(/[|`]/, " ", $2)
        gsub(/ +/, " ", $2)
        printf "| %s | `%s` |\n", $1, substr($2, 1, 100)
    }'
