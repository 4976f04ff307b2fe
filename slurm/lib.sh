# shellcheck shell=bash
# Shared code of the batch scripts: they call `train`, `sweep` or `evaluate`, below. runtime.sh reads the site file.
# The step runs in the background, so that this shell handles signals (docs/slurm.md has the table). It forwards USR1,
# sent ahead of the time limit, but not TERM: srun would kill its tasks, and Slurm signals the step itself.

set -uo pipefail
kit=${kit:?set by the batch script that sources this file}
readonly CONFIG=78 INTERRUPTED=143 # docs/exit-codes.md
readonly RESUME="the same sbatch line resumes from the last complete checkpoint"
got_usr1='' got_term='' requeued='' # "yes" once it has happened
all_gpus=0 step_pid=''              # GPUs of the job; process id of srun, while a step runs
run_dir='' records='' row=''        # attempts.tsv of the run, once this job owns it, and this attempt's row
ended_with='' buffering=(--unbuffered) # exit code of the step that ended the attempt; srun's option for a step's output
kit_command=() container=()         # the command that starts the kit in the job's runtime, and srun's options for it

exec 3>&1 # the job's log, also while a command's output is redirected
log() { printf '[%s] %s\n' "$(date '+%F %T')" "$*" >&3; }
fail() { log "error: $*"; exit 1; }
refuse() { log "error: $*"; exit "$CONFIG"; } # the recipe, the command or the site file is wrong: a retry cannot help

. "$kit/slurm/runtime.sh"

trap 'log "USR1: the time limit is near"; forward_usr1' USR1
trap 'on_term' TERM
trap 'report_end $?' EXIT

# Read the site file, and check devices and runtime.
start_job() {
    [ -n "${SLURM_JOB_ID:-}" ] || refuse "this is a batch script: sbatch $0"
    readonly attempt=$((${SLURM_RESTART_COUNT:-0} + 1)) nodes=$SLURM_JOB_NUM_NODES
    # The name of an array's task; SLURM_JOB_ID is a number that does not requeue it alone.
    readonly job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
    log "job $job (${SLURM_JOB_NAME:-}), attempt $attempt: $nodes node(s), first $(hostname); in $SLURM_SUBMIT_DIR"
    cd "$SLURM_SUBMIT_DIR" || refuse "$(hostname) cannot enter $SLURM_SUBMIT_DIR: is it on a shared filesystem?"
    set +u # for the site's code
    read_site
    set -u
    export MINI_R1_JOB_ID=$job # the launcher counts the attempts of this job, and ends it with 78 at a limit
    check_devices
    check_runtime
}

# A field of this job, up to its first space: JobState, Reason, Comment.
job_field() { scontrol show job "$SLURM_JOB_ID" --oneliner 2>/dev/null | grep -o " $1=[^ ]*" | cut -d = -f 2-; }

# The shell around a task. It ignores USR1, and so does the launcher until it has its handlers. Compiled code is cached
# on the node's disk, where only this user can write: Triton's cache hangs on a network filesystem.
# shellcheck disable=SC2016 # expanded on the node
readonly TASK='
trap "" USR1
seen=${CUDA_VISIBLE_DEVICES-none}
if [ "$seen" != none ] && [ "${SLURM_GPUS_ON_NODE:-0}" != "$(tr "," "\n" <<<"$seen" | grep -c .)" ]; then
    echo "error: the task on $(hostname) sees only GPU $seen of the ${SLURM_GPUS_ON_NODE:-0} that the job has there:" \
        "use --gpus-per-node, without --gpus-per-task and --gpu-bind" >&2
    exit 78
fi
cache=${TMPDIR:-/tmp}/mini-r1-$(id -u)
mkdir -m 700 "$cache" 2>/dev/null
[ -O "$cache" ] && [ ! -L "$cache" ] || cache=$(mktemp -d)
for name in TRITON_CACHE_DIR VLLM_CACHE_ROOT TORCHINDUCTOR_CACHE_DIR TORCH_EXTENSIONS_DIR; do
    export "$name=${!name:-$cache/$name}"
done
export PYTHONNOUSERSITE=1 PYTHONSAFEPATH=1 # no module from the folder you submit from
exec "$@"'

# Run a command of the kit once on every node and wait for it. Returns its exit code.
run_step() {
    local code again
    local options=(--nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --export=ALL --mpi=none "${buffering[@]}"
        --kill-on-bad-exit=0 --wait=0 # the first node that ends must not kill others that are still saving
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}) # srun 22.05 does not inherit it from the job
    [ -z "$got_usr1$got_term" ] || return "$INTERRUPTED"
    # USR1 must not kill srun before it has installed its handler.
    (trap '' USR1 && exec srun "${options[@]}" "${container[@]}" bash -c "$TASK" mini-r1 "${kit_command[@]}" "$@") \
        </dev/null &
    step_pid=$!
    [ -z "$got_usr1" ] || forward_usr1
    until # a signal interrupts `wait`, whose exit code is then not the step's
        wait "$step_pid" && code=0 || code=$?
        ! kill -0 "$step_pid" 2>/dev/null
    do :; done
    wait "$step_pid" 2>/dev/null && again=0 || again=$?
    [ "$again" = 127 ] || code=$again # 127: the first `wait` returned it
    step_pid=
    return "$code"
}

on_term() {
    got_term=yes
    # Slurm does not requeue it then, and ends this shell after KillWait: requeue before the step has saved.
    [ "$(job_field Reason)" != TimeLimit ] || requeue "at the time limit"
}

# Signal every task, repeatedly: the launcher may not listen yet, and treats all signals as one.
forward_usr1() {
    got_usr1=yes
    [ -n "$step_pid" ] || return 0
    (while kill -USR1 "$step_pid" 2>/dev/null; do sleep 5; done) </dev/null >/dev/null 2>&1 &
}

# Have the kit check everything on every node and print the run directory, before any work.
find_run_dir() {
    local answer code buffering=() # whole lines, or those of two nodes may mix
    answer=$(mktemp) || fail "no temporary file on $(hostname): is ${TMPDIR:-/tmp} full?"
    log "checking recipe and runtime: $*"
    run_step launch "$@" --dry-run --print-run-dir >"$answer"
    code=$?
    run_dir=$(sort -u "$answer")
    rm -f "$answer"
    case $code in
        0) ;;
        126 | 127 | 255) refuse "the kit does not start in the runtime $MINI_R1_RUNTIME on every node: see above" ;;
        1 | "$CONFIG" | "$INTERRUPTED") end_attempt "$code" ;;
        *) refuse "the check ended with exit code $code before the run directory was known, so it is not retried" ;;
    esac
    [ "$(wc -l <<<"$run_dir")" = 1 ] || refuse "the nodes name different run directories: set one with --run-dir"
    check_mounted "$run_dir"
}

# Take the run directory for this job, and begin this attempt's row.
open_run_dir() {
    local note="mini-r1-run-dir:" last other file
    if [ "$attempt" -gt 1 ] && ! [ -e "$run_dir/slurm" ] && [[ $(job_field Comment) == "$note"* ]]; then
        refuse "an earlier attempt wrote to $run_dir, which $(hostname) does not see: use a shared filesystem"
    fi
    mkdir -p "$run_dir/slurm" || refuse "cannot count the attempts of this job there, so it is not retried"
    scontrol update jobid="$SLURM_JOB_ID" comment="$note$run_dir" 2>/dev/null # for the check above; may fail
    records=$run_dir/slurm/attempts.tsv
    for file in "$run_dir"/slurm/running-*; do
        read -r last 2>/dev/null <"$file" || continue
        other=${last%%$'\t'*}
        if [ "$other" != "$job" ]; then
            wait_for_job "$other" && continue
            [ -e "$file" ] || continue # that job has written its own end
        fi
        # That attempt was killed; its last heartbeat is its end.
        record_attempt "$last" "$(stat -c %Y "$run_dir/state.json" 2>/dev/null || echo 0)" killed
    done
    before=$(printf '%s\n' "$run_dir"/checkpoints/step-*/manifest.json |
        sed -n 's,.*/step-\([0-9]\+\)/manifest.json$,\1,p' | sort -n | tail -n 1 | grep . || echo 0)
    row=$(printf '%s\t' "$job" "$attempt" "$(($(date +%s) - SECONDS))" "$all_gpus")$before
    printf '%s\n' "$row" >"$run_dir/slurm/running-$job"
    log "run directory $run_dir$([ "$before" = 0 ] || echo ", resuming from step $before")"
}

# Wait while another job trains in the run directory. If it still does, the launcher reports that (150).
wait_for_job() {
    local end=$((SECONDS + $(awk -v minutes="${MINI_R1_WAIT_MINUTES:-10}" 'BEGIN { print int(60 * minutes) }')))
    while [ -n "$(squeue --noheader --jobs="$1" --states=running 2>/dev/null)" ]; do
        if [ "$SECONDS" -ge "$end" ] || [ -n "$got_usr1$got_term" ]; then
            export MINI_R1_RUN_HELD_BY=$1
            return
        fi
        log "waiting for job $1, which is training in $run_dir (MINI_R1_WAIT_MINUTES)"
        sleep 15
    done
    return 1
}

# Add a row to attempts.tsv: job, attempt, start (s since 1970), GPUs, first checkpoint, seconds, exit code.
record_attempt() {
    local seconds=$(($2 - $(cut -f 3 <<<"$1")))
    printf '%s\t%s\t%s\n' "$1" "$((seconds > 0 ? seconds : 0))" "$3" >>"$records"
    rm -f "$run_dir/slurm/running-${1%%$'\t'*}"
}

# End the job, or requeue it, after the exit code of a step.
end_attempt() {
    ended_with=$1 # reported even if this shell exits with 0 after a requeue
    case $1:$requeued in
        0:* | 1:* | "$CONFIG":* | *:yes) exit "$1" ;;
    esac
    state=$(job_field JobState) # COMPLETING: preempted, or cancelled, which this script must not undo
    if [ "${state:-RUNNING}" != RUNNING ]; then
        log "Slurm ends this job: if it was preempted, Slurm restarts it; if it was cancelled, $RESUME"
        exit "$1"
    fi
    requeue "after exit code $1" && exit 0
    log "error: Slurm did not accept the requeue; $RESUME"
    exit "$1"
}

# Requeue this job. Slurm then ends this attempt with TERM.
requeue() {
    trap '' TERM
    for _ in 1 2 3; do
        scontrol requeue "$job" && requeued=yes && break
        sleep 5
    done
    [ -n "$requeued" ] && log "requeued $1"
}

# Write the attempt's row and its last lines of the log.
report_end() {
    local code=${ended_with:-$1}
    trap '' TERM USR1 # Slurm sends TERM after a requeue, also to the programs that are started here
    [ -z "$row" ] || record_attempt "$row" "$(date +%s)" "$code"
    log "attempt over: exit code $code, $(awk -v s="$SECONDS" -v g="$all_gpus" 'BEGIN {
        printf "%d:%02d:%02d, %.2f GPU-hours", s / 3600, s / 60 % 60, s % 60, s * g / 3600 }')"
    [ -z "$records" ] || log "this run so far: $(awk -F '\t' '{ s += $6; g += $6 * $4 } END {
        printf "%d attempt(s), %.2f h, %.2f GPU-hours", NR, s / 3600, g / 3600 }' "$records")"
}

# train DEFAULT_RECIPE [RECIPE] [OPTIONS OF mini-r1 launch]
train() {
    local recipe=$1
    shift
    [[ ${1:--} == -* ]] || { recipe=$1 && shift; }
    start_job
    if [ -n "${MINI_R1_RUNS:-}" ] && [[ " $* " != *" --run-dir"* ]]; then
        set -- --run-dir "$MINI_R1_RUNS/$(basename "${recipe%.y*ml}")" "$@"
    fi
    launch "$recipe" "$@"
}

launch() {
    local copy copying code
    find_run_dir "$@"
    open_run_dir
    log "training on $all_gpus GPU(s)"
    # `tee` copies the output of this attempt, and must survive the signals that this shell gets.
    exec {copy}> >(trap '' TERM USR1 && exec tee "$run_dir/slurm/$job-$attempt.log")
    copying=$!
    run_step launch "$@" >&"$copy" 2>&1
    code=$?
    exec {copy}>&-
    wait "$copying"
    end_attempt "$code"
}

# sweep TABLE DEFAULT_RECIPE [TABLE] [RECIPE] [OPTIONS OF mini-r1 launch]: train the row of this task of the array
sweep() {
    local table=$kit/$1 recipe=$2 line values sets=()
    shift 2
    [[ ${1:--} == -* ]] || { table=$1 && shift; }
    [[ ${1:--} == -* ]] || { recipe=$1 && shift; }
    start_job
    [ -n "${SLURM_ARRAY_TASK_ID:-}" ] || refuse "no array: sbatch --array=0-3 slurm/sweep.sh, a task per row of $table"
    [ -r "$table" ] || refuse "cannot read the table $table from $PWD"
    check_line_ends "$table"
    line=$(grep -v '^[[:space:]]*\(#\|$\)' "$table" | sed -n "$((SLURM_ARRAY_TASK_ID + 1))p")
    [ -n "$line" ] || refuse "no row $SLURM_ARRAY_TASK_ID in $table: --array counts its rows from 0"
    read -ra values <<<"$line"
    [[ ${values[0]} =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
        refuse "$table: '${values[0]}' names a run directory: use only letters, digits and . _ -"
    for value in "${values[@]:1}"; do sets+=(--set "$value"); done
    log "row $SLURM_ARRAY_TASK_ID of $table: $line"
    launch "$recipe" --run-dir "${MINI_R1_RUNS:-runs}/$(basename "${table%.*}")/${values[0]}" "${sets[@]}" "$@"
}

# evaluate RUN [all] [OPTIONS OF mini-r1 evaluate]: the newest snapshot, or all and the untrained model
evaluate() {
    local run=${1:-} snapshots=(--newest) code
    [ -n "${run%%-*}" ] || refuse "no run given: sbatch slurm/evaluate.sh runs/mini-r1-3b"
    shift
    start_job
    [ -d "$run" ] || refuse "no run directory $run in $PWD on $(hostname)"
    check_mounted "$(realpath -s "$run")"
    case " $* " in
        " all "*) shift && snapshots=() ;;
        *" --step"[\ =]*) snapshots=() ;;
    esac
    log "evaluating $run"
    trap 'got_term=yes' TERM # no requeue at the time limit: the next attempt would not get further
    run_step evaluate "$run" "${snapshots[@]}" "$@"
    code=$?
    [ "$code" != "$INTERRUPTED" ] || end_attempt "$code" # preempted
    exit "$code"
}
