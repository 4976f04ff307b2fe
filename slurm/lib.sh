# shellcheck shell=bash
# What the batch scripts of this folder share: a script sources it and calls `train`, `sweep` or `evaluate`, below.
# Resources and policy stand in the scripts, the site in site.env, roles and recipes in the kit itself; runtime.sh is
# what a job makes of its site.
#
# How a run survives (docs/slurm.md has the table): the step runs in the background, so that this shell hears signals.
# USR1, ahead of the time limit, is passed on to the step; TERM never is, because srun would kill its tasks on it, and
# Slurm tells the step itself. The launcher's exit code says whether a complete checkpoint stands (143) or to try again
# (150); this shell decides on a requeue, and against it when the job was cancelled.

set -uo pipefail
kit=${kit:?sourced by a batch script, which says where the kit is}

readonly CONFIG=78 INTERRUPTED=143 RETRY=150 # docs/exit-codes.md
started=$(date +%s)
noticed=     # USR1 has come
terminated=  # TERM has come
requeued=    # Slurm has taken this shell's wish
step_pid=    # srun, while a step runs
run_dir=     # of the run, once the kit has said which
records=     # attempts.tsv of the run, once this job may write to it
row=         # of it, as far as it is known
ended_with=  # exit code of the step that decided
all_gpus=0   # of the job
inside=()    # what a command in the job's runtime begins with
container=() # srun's options for it

exec 3>&1 # the job's log, wherever a command's output goes
say() { printf '[%s] %s\n' "$(date '+%F %T')" "$*" >&3; }

# The recipe, the command or the site file is wrong: nobody should try again.
refuse() {
    say "error: $*"
    exit "$CONFIG"
}

fail() {
    say "error: $*"
    exit 1
}

. "$kit/slurm/runtime.sh"

trap 'notice' USR1
trap 'terminate' TERM
trap 'farewell $?' EXIT

# ---- the job ---------------------------------------------------------------------------------------------------------

# From the site file to a runtime that has been looked at.
begin() {
    [ -n "${SLURM_JOB_ID:-}" ] || refuse "this is a batch script: sbatch $0"
    readonly attempt=$((${SLURM_RESTART_COUNT:-0} + 1)) nodes=$SLURM_JOB_NUM_NODES
    # A task of an array has an id of its own, but only this name requeues it alone.
    readonly job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}
    say "job $job (${SLURM_JOB_NAME:-}), attempt $attempt: $nodes node(s), the first is $(hostname); in $SLURM_SUBMIT_DIR"
    cd "$SLURM_SUBMIT_DIR" || refuse "$SLURM_SUBMIT_DIR cannot be entered on $(hostname): is it on a shared filesystem?"
    read_site
    [ "$attempt" -le $((${MINI_R1_MAX_RESTARTS:-100} + 1)) ] || fail "this job was started again $((attempt - 2)) times:" \
        "enough (MINI_R1_MAX_RESTARTS). The same sbatch line goes on from the last checkpoint"
    load_modules
    check_devices
    check_runtime
}

# ---- steps -----------------------------------------------------------------------------------------------------------

# The shell around a task. USR1 may come before the launcher has its handlers, and must not kill it: what is ignored stays
# so until a program asks for it. Compiled code goes to the node's own disk, into a folder that only this user can write:
# Triton's cache hangs on a network filesystem, and what is in it is executed.
# shellcheck disable=SC2016 # expanded on the node
readonly TASK='
trap "" USR1
seen=${CUDA_VISIBLE_DEVICES-none}
if [ "$seen" != none ] && [ "${SLURM_GPUS_ON_NODE:-0}" != "$(tr "," "\n" <<<"$seen" | grep -c .)" ]; then
    echo "error: the task on $(hostname) sees only GPU $seen of the ${SLURM_GPUS_ON_NODE:-0} that the job has there:" \
        "leave out --gpus-per-task and --gpu-bind, use --gpus-per-node" >&2
    exit 78
fi
cache=${TMPDIR:-/tmp}/mini-r1-$(id -u)
mkdir -m 700 "$cache" 2>/dev/null
[ -O "$cache" ] && [ ! -L "$cache" ] || cache=$(mktemp -d)
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$cache/triton} VLLM_CACHE_ROOT=${VLLM_CACHE_ROOT:-$cache/vllm}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$cache/inductor}
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$cache/extensions} PYTHONNOUSERSITE=1
export PYTHONSAFEPATH=1 # a random.py where you submit from is none of ours
exec "$@"'

# Run the kit's command once on every node and wait for it; returns its exit code.
step() {
    local code again
    local options=(--nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --export=ALL --mpi=none --unbuffered
        # The first node that ends must not take down others that still save.
        --kill-on-bad-exit=0 --wait=0)
    # srun does not take it over from the job since 22.05.
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || options+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")
    [ -z "$noticed$terminated" ] || return "$INTERRUPTED"
    # A notice that comes before srun listens must not kill it.
    (trap '' USR1 && exec srun "${options[@]}" "${container[@]}" bash -c "$TASK" mini-r1 "${inside[@]}" "$@") \
        </dev/null &
    step_pid=$!
    [ -z "$noticed" ] || pass_on
    while :; do
        wait "$step_pid" && code=0 || code=$?
        kill -0 "$step_pid" 2>/dev/null || break # else a signal has interrupted `wait`
    done
    wait "$step_pid" 2>/dev/null && again=0 || again=$?
    [ "$again" = 127 ] || code=$again # 127: `wait` had told it before
    step_pid=
    return "$code"
}

notice() {
    [ -z "$noticed" ] || return 0
    noticed=yes
    say "USR1: the time limit is near"
    [ -z "$step_pid" ] || pass_on
}

terminate() {
    terminated=yes
    # Slurm would not start it again, and after KillWait there is no shell left to ask: before the step has saved.
    [ "$(job_field Reason)" != TimeLimit ] || requeue "at the time limit"
}

# To every task. More than once: the first may come before the launcher has its handlers, and it hears all as one.
pass_on() {
    local srun=$step_pid
    (while kill -USR1 "$srun" 2>/dev/null; do sleep 5; done) </dev/null >/dev/null 2>&1 &
}

# ---- the run directory -----------------------------------------------------------------------------------------------

# Ask the kit which run directory this is, on every node and in the job's runtime: what is wrong with the recipe, the
# runtime, the devices or the options is said here, before any work.
find_run_dir() {
    local answer code
    answer=$(mktemp) || fail "no temporary file on $(hostname): is ${TMPDIR:-/tmp} full?"
    say "checking recipe and runtime: $*"
    step launch "$@" --dry-run --json >"$answer"
    code=$?
    run_dir=$(sed -n 's/^ *"run_dir": "\(.*\)",*$/\1/p' "$answer" | sort -u)
    rm -f "$answer"
    case $code in
        0) ;;
        126 | 127 | 255) refuse "the kit does not start in the runtime $MINI_R1_RUNTIME on every node: see the lines above" ;;
        1 | "$CONFIG" | "$INTERRUPTED") conclude "$code" ;;
        *) start_failed "$code" ;;
    esac
    [ "$(wc -l <<<"$run_dir")" = 1 ] || refuse "the nodes name different run directories: give one with --run-dir"
    [ "$MINI_R1_RUNTIME" = venv ] || is_mounted "$run_dir" || refuse "the run directory $run_dir is not mounted into the" \
        "container, and would be gone with it: name a folder above it in MINI_R1_MOUNTS"
}

# A node's fault before the run directory is known, where failures are counted: Slurm keeps the count.
start_failed() {
    local count
    count=$(comment | sed -n 's/^mini-r1 failed starts: \([0-9]*\).*/\1/p')
    count=$((${count:-0} + 1))
    [ "$count" -lt "${MINI_R1_MAX_FAILURES:-3}" ] || fail "$count starts in a row failed: enough (MINI_R1_MAX_FAILURES)." \
        "Mend what the lines above say; the same sbatch line goes on from the last checkpoint"
    scontrol update jobid="$SLURM_JOB_ID" comment="mini-r1 failed starts: $count"
    conclude "$1"
}

comment() { scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Comment=//p'; }

# Whether what is written to a path in the container is written there on the node.
is_mounted() {
    local host target options
    while IFS=$'\t' read -r host target options; do
        [[ $host = "$target" && $options != ro && $1/ == "${host%/}"/* ]] && return 0
    done < <(mounts)
    return 1
}

# What earlier attempts have left in the run directory, and whether this node sees it.
open_run_dir() {
    local note="mini-r1 run directory" last='' other
    if [ "$attempt" -gt 1 ] && ! [ -e "$run_dir/slurm" ] && [[ $(comment) == "$note"* ]]; then
        refuse "an earlier attempt of this job has written to $run_dir, and $(hostname) does not see it: the run" \
            "directory is to be on a filesystem that all nodes share (--run-dir, or MINI_R1_RUNS in slurm/site.env)"
    fi
    mkdir -p "$run_dir/slurm" || start_failed "$RETRY" # mkdir has said why
    scontrol update jobid="$SLURM_JOB_ID" comment="$note $run_dir" 2>/dev/null # for the check above; needs no success
    records=$run_dir/slurm/attempts.tsv
    [ ! -e "$run_dir/slurm/running" ] || read -r last <"$run_dir/slurm/running"
    if [ -n "$last" ]; then
        other=${last%%$'\t'*}
        if [ "$other" != "$job" ] && [ -n "$(squeue --noheader --jobs="$other" --states=running 2>/dev/null)" ]; then
            records='' # the other job's; so is the row that it will write
            refuse "job $other is training in $run_dir: wait for it, scancel it, or choose another --run-dir"
        fi
        # It was killed, and could not say when: its last sign of life counts.
        record "$last" "$(stat -c %Y "$run_dir/state.json" 2>/dev/null || echo 0)" killed
    fi
    before=$(complete_steps "$run_dir/checkpoints" | tail -n 1)
    before=${before:-0} # without one
    bound_failures
    row=$(printf '%s\t' "$job" "$attempt" "$started" "$all_gpus")$before
    printf '%s\n' "$row" >"$run_dir/slurm/running"
    say "run directory $run_dir$([ "$before" = 0 ] || echo ", goes on from step $before")"
}

# The steps of the complete checkpoints or snapshots in a folder, a line each, in order.
complete_steps() {
    local path
    for path in "$1"/step-*/manifest.json; do
        path=${path%/manifest.json} && echo "${path##*/step-}"
    done | grep -x '[0-9]*' | sort -n
}

# Add a row: job, attempt, start (s since 1970), GPUs, checkpoint at the start, seconds, exit code.
record() {
    local start seconds
    start=$(cut -f 3 <<<"$1") && seconds=$(($2 - start))
    printf '%s\t%s\t%s\n' "$1" "$((seconds > 0 ? seconds : 0))" "$3" >>"$records"
    rm -f "$run_dir/slurm/running"
}

# A node that is broken fails every attempt, and a time limit may be too short for one save: so many in a row from the
# same checkpoint are enough. One that was preempted or killed is no failure, but ten of them led nowhere either.
bound_failures() {
    local most=${MINI_R1_MAX_FAILURES:-3} fruitless=10 failed idle
    read -r failed idle < <(awk -F '\t' -v job="$job" -v step="$before" '
        $1 == job && $5 != step { failed = idle = 0 }
        $1 == job && $5 == step { idle++; failed = $7 == 143 || $7 == "killed" ? 0 : failed + 1 }
        END { print failed + 0, idle + 0 }' "$records" 2>/dev/null || echo 0 0)
    [ "$failed" -lt "$most" ] || fail "$failed attempts in a row failed without a new checkpoint: enough" \
        "(MINI_R1_MAX_FAILURES). Mend what the lines above say; the same sbatch line goes on from step $before"
    [ "$idle" -lt "$fruitless" ] || fail "$idle attempts in a row came to no new checkpoint: enough. Give it more --time, a" \
        "longer --signal, or save more often (save_steps); the same sbatch line goes on from step $before"
}

# ---- the end of an attempt -------------------------------------------------------------------------------------------

# A field of this job: JobState, Reason, ...
job_field() { scontrol show job "$SLURM_JOB_ID" --oneliner 2>/dev/null | sed -n "s/.* $1=\\([^ ]*\\).*/\\1/p"; }

# From a step's exit code to this job's end: over, or requeued.
conclude() {
    local code=$1 state again="the same sbatch line goes on from the last complete checkpoint"
    ended_with=$code # which the last lines tell, whatever this shell tells Slurm
    case $code in
        0 | 1 | "$CONFIG") exit "$code" ;;
    esac
    [ -z "$requeued" ] || exit "$code"
    # COMPLETING: Slurm ends this job. It was preempted, and Slurm starts it again, or cancelled, which nobody may undo.
    state=$(job_field JobState)
    if [ -n "$state" ] && [ "$state" != RUNNING ]; then
        say "ended by Slurm: if preempted, it starts again by itself; if cancelled, $again"
        exit "$code"
    fi
    requeue "after exit code $code" && exit 0
    say "error: Slurm did not take the requeue; $again"
    exit "$code"
}

# Ask Slurm to start this job again. It ends this attempt with TERM, if it has not yet.
requeue() {
    trap '' TERM
    for _ in 1 2 3; do
        if scontrol requeue "$job"; then
            requeued=yes
            say "requeued $1"
            return 0
        fi
        sleep 5
    done
    return 1
}

# The last lines of an attempt, however it ends.
farewell() {
    local code=$1 now
    trap '' TERM USR1 # a requeued job gets it at once, and every program that is started here with it
    now=$(date +%s)
    [ -z "$row" ] || record "$row" "$now" "${ended_with:-$code}"
    say "attempt over: exit code ${ended_with:-$code}, $(hours $((now - started)) "$all_gpus")"
    [ -z "$records" ] || say "this run so far: $(awk -F '\t' '{ s += $6; g += $6 * $4 } END {
        printf "%d attempt(s), %.2f h, %.2f GPU-hours", NR, s / 3600, g / 3600 }' "$records")"
}

hours() { awk -v s="$1" -v g="$2" 'BEGIN { printf "%d:%02d:%02d, %.2f GPU-hours", s / 3600, s / 60 % 60, s % 60, s * g / 3600 }'; }

# ---- what scripts call -----------------------------------------------------------------------------------------------

# train DEFAULT_RECIPE [RECIPE] [OPTIONS OF mini-r1 launch]
train() {
    local recipe=$1 arguments copy copying code
    shift
    if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
        recipe=$1
        shift
    fi
    begin
    arguments=("$recipe" "$@")
    if [ -n "${MINI_R1_RUNS:-}" ] && [[ " $* " != *" --run-dir"* ]]; then
        recipe=${recipe##*/} && recipe=${recipe%.yaml} && recipe=${recipe%.yml} # lora-1.5b has a dot of its own
        arguments+=(--run-dir "$MINI_R1_RUNS/$recipe")
    fi
    find_run_dir "${arguments[@]}"
    open_run_dir
    say "training on $all_gpus GPU(s)"
    # A copy of what this attempt prints; `tee` must outlive the signals that the shell gets.
    exec {copy}> >(trap '' TERM USR1 && exec tee "$run_dir/slurm/$job-$attempt.log")
    copying=$!
    step launch "${arguments[@]}" >&"$copy" 2>&1
    code=$?
    exec {copy}>&-
    wait "$copying"
    conclude "$code"
}

# sweep TABLE DEFAULT_RECIPE [TABLE] [RECIPE] [OPTIONS OF mini-r1 launch]: this task's row of the table
sweep() {
    local table=$kit/$1 recipe=$2 line name words=() sets=() rows
    shift 2
    [ $# -eq 0 ] || [ "${1#-}" != "$1" ] || { table=$1 && shift; }
    [ $# -eq 0 ] || [ "${1#-}" != "$1" ] || { recipe=$1 && shift; }
    [ -n "${SLURM_ARRAY_TASK_ID:-}" ] || refuse "no array: sbatch --array=0-3 slurm/sweep.sh, one task for each row of $table"
    [ -r "$table" ] || refuse "no table at $table that can be read from $PWD"
    ! has_crlf "$table" || refuse "$table has Windows line ends (CRLF): sed -i 's/\r\$//' '$table'"
    rows=$(grep -vc '^[[:space:]]*\(#\|$\)' "$table")
    line=$(grep -v '^[[:space:]]*\(#\|$\)' "$table" | sed -n "$((SLURM_ARRAY_TASK_ID + 1))p")
    [ -n "$line" ] || refuse "no row $SLURM_ARRAY_TASK_ID in $table: it has $rows, which --array counts from 0"
    read -ra words <<<"$line"
    name=${words[0]}
    [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || refuse "$table: '$name' names a run directory: letters, digits, . _ - only"
    for word in "${words[@]:1}"; do sets+=(--set "$word"); done
    say "row $SLURM_ARRAY_TASK_ID of $table: $line"
    table=${table##*/}
    read_site # which may say MINI_R1_RUNS
    train "$recipe" --run-dir "${MINI_R1_RUNS:-runs}/${table%.*}/$name" "${sets[@]}" "$@"
}

# evaluate RUN [all] [OPTIONS OF mini-r1 evaluate]: its newest snapshot, or the untrained model and every snapshot as far
# as they are not measured yet with these settings
evaluate() {
    local run=${1:-} which=(--newest) code
    [ -n "${run%%-*}" ] || refuse "which run? sbatch slurm/evaluate.sh runs/mini-r1-3b"
    shift
    begin
    [ -d "$run" ] || refuse "no run directory $run from $PWD on $(hostname)"
    [ "$MINI_R1_RUNTIME" = venv ] || is_mounted "$(realpath -s "$run")" || refuse "$run is not mounted into the container:" \
        "name a folder above it in MINI_R1_MOUNTS"
    if [ "${1:-}" = all ]; then
        shift
        which=()
    elif [[ " $* " == *" --step"[\ =]* ]]; then
        which=()
    fi
    trap 'terminated=yes' TERM # at its time limit an evaluation is over: a second one would not come further
    say "evaluating $run"
    step evaluate "$run" "${which[@]}" "$@" && exit 0
    code=$?
    # Preempted: once more. Everything else would only come again.
    [ "$code" != "$INTERRUPTED" ] || conclude "$code"
    exit "$code"
}
