# shellcheck shell=bash disable=SC2034,SC2154 # what lib.sh and this file share
# From the site file to `inside` and `container`: what a command of the kit begins with on this cluster. Sourced by lib.sh.

# ---- the site --------------------------------------------------------------------------------------------------------

has_crlf() { grep -q $'\r' -- "$1"; }

read_site() {
    local site=$kit/slurm/site.env name
    if [ -e "$site" ]; then
        ! has_crlf "$site" || refuse "$site has Windows line ends (CRLF): sed -i 's/\r\$//' '$site'"
        bash -n "$site" || refuse "$site cannot be read as shell: see the line above"
        set +u # somebody else's lines
        # shellcheck disable=SC1090
        . "$site"
        set -u
    fi
    case ${MINI_R1_RUNTIME:-} in
        venv | apptainer | pyxis) ;;
        '') refuse "no runtime chosen: cp slurm/site.env.example slurm/site.env, and set MINI_R1_RUNTIME there (what your" \
            "shell exports does not arrive with sbatch --export=NONE)" ;;
        *) refuse "MINI_R1_RUNTIME=$MINI_R1_RUNTIME: must be venv, apptainer or pyxis" ;;
    esac
    for name in MINI_R1_MAX_RESTARTS MINI_R1_MAX_FAILURES; do
        [[ ${!name:-0} =~ ^[0-9]+$ ]] || refuse "$name=${!name}: must be a whole number"
    done
}

load_modules() {
    local file
    [ -n "${MINI_R1_MODULES:-}" ] || return 0
    set +u
    if ! command -v module >/dev/null; then
        for file in /etc/profile.d/{lmod,z00_lmod,modules}.sh; do
            # shellcheck disable=SC1090
            [ -r "$file" ] && . "$file"
        done
    fi
    command -v module >/dev/null || refuse "MINI_R1_MODULES is set, but this node has no 'module' command"
    # shellcheck disable=SC2086 # several words on purpose
    module load $MINI_R1_MODULES || refuse "module load $MINI_R1_MODULES failed: see the lines above, and module avail"
    set -u
}

# One task a node, which sees every GPU of the job there: the launcher starts the workers itself.
check_devices() {
    local tasks=${SLURM_TASKS_PER_NODE:-1}
    gpus=${SLURM_GPUS_ON_NODE:-0}
    [ "${tasks%%(*}" = 1 ] || refuse "Slurm would start $tasks tasks on a node: leave out --ntasks and --ntasks-per-node;" \
        "one task a node starts a worker for each GPU itself"
    [ "$gpus" != 0 ] || refuse "no GPU was allocated: sbatch --gpus-per-node=N (sinfo -o '%P %G' shows which partitions" \
        "have some)"
    if [ -n "${SLURM_GPUS_PER_TASK:-}" ] && [ "${SLURM_GPUS_PER_TASK##*:}" != "$gpus" ]; then
        refuse "--gpus-per-task=$SLURM_GPUS_PER_TASK hides the other GPUs of the node from its one task, which needs all" \
            "$gpus: use --gpus-per-node"
    fi
    [ "${SLURM_GPU_BIND:-none}" = none ] || refuse "--gpu-bind=$SLURM_GPU_BIND hides GPUs from the task of the node: leave it out"
    # After --gres the directive's number still stands here, and the step would ask for it.
    [ "${SLURM_GPUS_PER_NODE-}" = "$gpus" ] || export SLURM_GPUS_PER_NODE=$gpus
    all_gpus=$((gpus * nodes))
}

# ---- the runtime -----------------------------------------------------------------------------------------------------

# What a container sees of the node, a line each: HOST, CONTAINER, OPTIONS. First the user's mounts, because a later one
# lies on top; then, each under its own name, the kit, the hub's cache, the runs, and what else this node writes to.
mounts() {
    local path words target options
    read -rd '' -a words <<<"${MINI_R1_MOUNTS:-}"
    for path in "${words[@]}"; do
        IFS=: read -r path target options <<<"$path"
        printf '%s\t%s\t%s\n' "$path" "${target:-$path}" "$options"
    done
    for path in "$kit" "$SLURM_SUBMIT_DIR" "$HF_HOME" "${MINI_R1_RUNS:-}" "${TMPDIR:-}"; do
        case $path in '' | /tmp) continue ;; esac # every runtime has a /tmp
        mkdir -p "$path" && path=$(realpath -s "$path")
        printf '%s\t%s\t\n' "$path" "$path"
    done
}

# The mounts in one word: HOST:CONTAINER[:OPTIONS],...
mount_option() {
    local host target options words=
    while IFS=$'\t' read -r host target options; do
        case $MINI_R1_RUNTIME:$host$target$options in
            *:*[,:]*) say "error: $host: a path with a comma or a colon cannot be mounted" && return 1 ;;
            pyxis:*\ *) say "error: $host: pyxis cannot mount a path with a space" && return 1 ;;
        esac
        [ -e "$host" ] || { say "error: $host is to be mounted, and is not there" && return 1; }
        host=$host:$target${options:+:$options}
        [[ ,$words, == *",$host,"* ]] || words=${words:+$words,}$host
    done < <(mounts)
    echo "$words"
}

is_uri() { [[ $1 == *://* || ($1 == *[#:]* && $1 != /* && $1 != ./*) ]]; }

# What a container is made of; says `options` for its mounts.
check_image() {
    local image=${MINI_R1_IMAGE:-}
    [ -n "$image" ] || refuse "MINI_R1_RUNTIME=$MINI_R1_RUNTIME needs MINI_R1_IMAGE: slurm/site.env.example says how to get one"
    if ! is_uri "$image"; then
        [ -r "$image" ] || refuse "no image at $image that $(id -un) can read on $(hostname): MINI_R1_IMAGE in" \
            "slurm/site.env; docs/slurm.md says how to get one without Docker"
        MINI_R1_IMAGE=$(realpath -s "$image") # pyxis takes a name without a slash for one in a registry
    fi
    # Else it is the image's own, which is empty.
    export HF_HOME=${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}
    options=$(mount_option) || refuse "the mounts above, for $MINI_R1_IMAGE"
}

check_runtime() {
    local options program
    case $MINI_R1_RUNTIME in
        venv)
            program=${MINI_R1_VENV:-$kit/.venv}/bin/python
            PYTHONSAFEPATH=1 "$program" -c 'import mini_r1' || refuse "no Python with the kit at $program: MINI_R1_VENV in" \
                "slurm/site.env is to name a virtual environment with the kit in it, on a filesystem that this node shares"
            inside=("$program" -m mini_r1)
            ;;
        apptainer)
            program=$(command -v apptainer || command -v singularity) || refuse "no apptainer on $(hostname): name its module in" \
                "MINI_R1_MODULES, or choose another MINI_R1_RUNTIME (pyxis, venv)"
            check_image
            inside=("$program" exec --no-home --bind "$options" --pwd "$PWD")
            [ "${MINI_R1_ACCELERATOR:-}" = cpu ] || inside+=(--nv)
            inside+=("$MINI_R1_IMAGE" mini-r1)
            ;;
        pyxis)
            [[ $(srun --help) == *--container-image* ]] || refuse "this Slurm has no pyxis (srun does not know" \
                "--container-image): MINI_R1_RUNTIME=apptainer or venv, or ask your administrator"
            check_image
            container=(--container-image="$MINI_R1_IMAGE" --container-mounts="$options" --container-workdir="$PWD"
                --no-container-mount-home)
            inside=(env "HF_HOME=$HF_HOME" mini-r1) # what an image sets wins over what the job exports
            ;;
    esac
    say "runtime: $MINI_R1_RUNTIME${MINI_R1_IMAGE:+, $MINI_R1_IMAGE}"
}
