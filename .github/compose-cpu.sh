#!/usr/bin/env bash
# Use docker-compose.yml as a user without a GPU does, from `up` to `down -v`: TensorBoard becomes healthy, shows the demo's
# run, and both stop in order. Uses an existing mini-r1:cpu, and builds nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RUN_WITHIN_S=900 # the run appears after the demo's warm start, a minute or two on a runner

cleanup() {
    status=$?
    if [ "$status" -ne 0 ]; then
        docker compose --profile=cpu ps --all
        docker compose --profile=cpu logs --no-color --tail=100
    fi
    docker compose --profile=cpu down -v
    exit "$status"
}
trap cleanup EXIT

docker compose --profile=cpu up -d --no-build
# Only this service: `--wait` fails on a demo that has finished, even with exit code 0.
docker compose --profile=cpu up -d --no-build --wait --wait-timeout=300 tensorboard-cpu

port=${TENSORBOARD_PORT:-6006}
until runs=$(curl --fail --silent --show-error --max-time 10 "http://127.0.0.1:$port/data/runs") && [ "$runs" != "[]" ]; do
    if [ "$SECONDS" -gt "$RUN_WITHIN_S" ]; then
        echo "compose-cpu: TensorBoard is healthy but shows no run after $RUN_WITHIN_S s; it says: $runs" >&2
        exit 1
    fi
    sleep 5
done
echo "TensorBoard shows: $runs"

docker compose --profile=cpu stop
# 143: the run has saved and stopped (docs/exit-codes.md), and TensorBoard ended on SIGTERM. 137: it was killed.
for service in demo tensorboard-cpu; do
    container=$(docker compose --profile=cpu ps --all --quiet "$service")
    code=$(docker inspect --format '{{.State.ExitCode}}' "$container")
    echo "$service exited $code"
    if [ "$code" -ne 0 ] && [ "$code" -ne 143 ]; then
        echo "compose-cpu: $service should have exited 0 or 143" >&2
        exit 1
    fi
done
