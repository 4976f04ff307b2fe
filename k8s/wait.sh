#!/usr/bin/env bash
# Wait for a Job or a PyTorchJob; return at once, with the reason, if it has failed:
#
#   k8s/wait.sh job/mini-r1-4xh100 ready          its pod runs, or has ended well; then follow its log
#   k8s/wait.sh job/mini-r1-prefetch complete 120 for at most 120 minutes; the default is 30
#
# `kubectl wait --for=condition=complete` would wait out its time for a job that has failed. MINI_R1_NAMESPACE is the namespace,
# mini-r1 by default. Exit code 1: failed, or not there in time.
set -uo pipefail

usage() { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2 && exit 78; }
object=${1:-} goal=${2:-} minutes=${3:-30}
name=${object#*/}
case $object in
    job/?*) selector=batch.kubernetes.io/job-name=$name started='{.status.ready}' ;;
    pytorchjob/?*)
        selector=training.kubeflow.org/job-name=$name
        started='{.status.conditions[?(@.type=="Running")].status}'
        ;;
    *) usage ;;
esac
[[ $goal =~ ^(ready|complete)$ && $minutes =~ ^[0-9]+$ ]] || usage

get() { kubectl -n "${MINI_R1_NAMESPACE:-mini-r1}" get "$@"; }

# Why there is no pod, or why it does not run: events of the job, and what each pod waits for or ended with.
readonly EVENT='{range .items[*]}{.reason}: {.message}{"\n"}{end}'
readonly POD='{range .items[*]}{.metadata.name}: {.status.phase} {.status.reason} {.status.message}'\
'{.status.conditions[?(@.reason=="Unschedulable")].message}'\
'{range .status.containerStatuses[*]}{.state.waiting.reason} {.state.waiting.message}'\
'{.state.terminated.reason}{" exit code "}{.state.terminated.exitCode}{end}{"\n"}{end}'
describe() {
    get event --field-selector="involvedObject.name=$name,type=Warning" -o jsonpath="$EVENT" | sort -u
    get pod -l "$selector" -o jsonpath="$POD" | sed 's/ exit code $//; s/  */ /g'
}

shown='' end=$((SECONDS + 60 * minutes))
while conditions=$(get "$object" -o jsonpath='{range .status.conditions[?(@.status=="True")]}{.type} {end}'); do
    case " $conditions" in
        *" Failed "* | *" FailureTarget "*)
            echo "$object has failed:" >&2
            get "$object" -o jsonpath='{range .status.conditions[*]}{.type}: {.reason}: {.message}{"\n"}{end}' >&2
            describe >&2
            kubectl -n "${MINI_R1_NAMESPACE:-mini-r1}" logs -l "$selector" --tail=15 --prefix >&2
            exit 1
            ;;
        *" Complete "* | *" Succeeded "*) exit 0 ;;
    esac
    if [ "$goal" = ready ] && [[ $(get "$object" -o jsonpath="$started") =~ ^([1-9]|True) ]]; then exit 0; fi
    now=$(describe)
    [ "$now" = "$shown" ] || printf '%s\n' "$now"
    shown=$now
    if [ "$SECONDS" -ge "$end" ]; then
        echo "$object is not $goal after $minutes minutes" >&2
        exit 1
    fi
    sleep 2
done
exit 1 # kubectl has printed why
