# shellcheck shell=bash disable=SC2034,SC2154 # variables shared with lib.sh
# Sourced by lib.sh: from the site file to `kit_command` and `container`, which start the kit on this cluster.
check_line_ends() { ! grep -q $'\r' -- "$1" || refuse "$1 has Windows line ends (CRLF): sed -i 's/\r\$//' '$1'"; }

# Read site.env, and load its modules.
read_site() {
    local site=$kit/slurm/site.env file
    if [ -e "$site" ]; then
        check_line_ends "$site"
        bash -n "$site" || refuse "$site is not valid shell: see the line above"
        # shellcheck disable=SC1090
        . "$site"
    fi
    [ -n "${MINI_R1_RUNTIME:-}" ] ||
        refuse "no runtime chosen: cp slurm/site.env.example slurm/site.env, and set MINI_R1_RUNTIME there"
    [[ $MINI_R1_RUNTIME =~ ^(venv|apptainer|pyxis)$ ]] ||
        refuse "MINI_R1_RUNTIME=$MINI_R1_RUNTIME: must be venv, apptainer or pyxis"
    [ -n "${MINI_R1_MODULES:-}" ] || return 0
    for file in /etc/profile.d/{lmod,z00_lmod,modules}.sh; do
        # shellcheck disable=SC1090
        command -v module >/dev/null || { [ -r "$file" ] && . "$file"; }
    done
    command -v module >/dev/null || refuse "MINI_R1_MODULES is set, but this node has no 'module' command"
    # shellcheck disable=SC2086 # several words on purpose
    module load $MINI_R1_MODULES || refuse "module load $MINI_R1_MODULES failed: see the lines above, and module avail"
}

# Require one task per node that sees every GPU of the job there: the launcher starts the workers.
check_devices() {
    local tasks=${SLURM_TASKS_PER_NODE:-1} gpus=${SLURM_GPUS_ON_NODE:-0}
    [ "${tasks%%(*}" = 1 ] || refuse "Slurm would start $tasks tasks per node: leave out --ntasks and --ntasks-per-node"
    [ "$gpus" != 0 ] || refuse "no GPU was allocated: sbatch --gpus-per-node=N (sinfo -o '%P %G' lists the partitions)"
    [[ ${SLURM_GPUS_PER_TASK:-$gpus} =~ (^|:)$gpus$ && ${SLURM_GPU_BIND:-none} = none ]] ||
        refuse "--gpus-per-task and --gpu-bind hide GPUs from the task of a node, which needs all: leave them out"
    # With --gres it still has the script's number, which srun would request.
    [ "${SLURM_GPUS_PER_NODE-}" = "$gpus" ] || export SLURM_GPUS_PER_NODE=$gpus
    all_gpus=$((gpus * nodes))
}

# Print the mounts of a container, a line each: HOST, CONTAINER, OPTIONS. Later ones cover the user's, which come first.
mounts() {
    local path requested target options
    read -rd '' -a requested <<<"${MINI_R1_MOUNTS:-}"
    for path in "${requested[@]}"; do
        IFS=: read -r path target options <<<"$path"
        printf '%s\t%s\t%s\n' "$path" "${target:-$path}" "$options"
    done
    for path in "$kit" "$SLURM_SUBMIT_DIR" "$HF_HOME" "${MINI_R1_RUNS:-}" "${TMPDIR:-}"; do
        case $path in '' | /tmp) continue ;; esac # every runtime has a /tmp
        mkdir -p "$path" && path=$(realpath -s "$path")
        printf '%s\t%s\t\n' "$path" "$path"
    done
}

# Print the mounts as one argument: HOST:CONTAINER[:OPTIONS],...
mount_option() {
    local host target options argument=
    while IFS=$'\t' read -r host target options; do
        case $MINI_R1_RUNTIME:$host$target$options in
            *:*[,:]*) log "error: $host: a path with a comma or a colon cannot be mounted" && return 1 ;;
            pyxis:*\ *) log "error: $host: pyxis cannot mount a path with a space" && return 1 ;;
        esac
        [ -e "$host" ] || { log "error: cannot mount $host: it does not exist" && return 1; }
        host=$host:$target${options:+:$options}
        [[ ,$argument, == *",$host,"* ]] || argument=${argument:+$argument,}$host
    done < <(mounts)
    echo "$argument"
}

# Refuse a run directory that a container would keep to itself: it must be mounted, writable, under the same path.
check_mounted() {
    local host target options
    [ "$MINI_R1_RUNTIME" != venv ] || return 0
    while IFS=$'\t' read -r host target options; do
        [[ $host = "$target" && $options != ro && $1/ == "${host%/}"/* ]] && return 0
    done < <(mounts)
    refuse "the run directory $1 is not mounted into the container: name a folder above it in MINI_R1_MOUNTS"
}

is_uri() { [[ $1 == *://* || ($1 == *[#:]* && $1 != /* && $1 != ./*) ]]; }

# Check the image of a container, and set `options` to its mounts.
check_image() {
    local image=${MINI_R1_IMAGE:-}
    [ -n "$image" ] || refuse "MINI_R1_RUNTIME=$MINI_R1_RUNTIME needs MINI_R1_IMAGE: see slurm/site.env.example"
    if ! is_uri "$image"; then
        [ -r "$image" ] || refuse "$(id -un) cannot read the image $image on $(hostname): see docs/slurm.md"
        MINI_R1_IMAGE=$(realpath -s "$image") # pyxis looks for a name without a slash in a registry
    fi
    # Otherwise the container would use the image's empty one.
    export HF_HOME=${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}
    options=$(mount_option) || refuse "the mounts above, for $MINI_R1_IMAGE"
}

check_runtime() {
    local options program
    case $MINI_R1_RUNTIME in
        venv)
            program=${MINI_R1_VENV:-$kit/.venv}/bin/python
            PYTHONSAFEPATH=1 "$program" -c 'import mini_r1' ||
                refuse "no Python with the kit at $program: set MINI_R1_VENV in slurm/site.env"
            kit_command=("$program" -m mini_r1)
            ;;
        apptainer)
            program=$(command -v apptainer || command -v singularity) ||
                refuse "no apptainer on $(hostname): set MINI_R1_MODULES, or choose another MINI_R1_RUNTIME"
            check_image
            kit_command=("$program" exec --no-home --bind "$options" --pwd "$PWD")
            [ "${MINI_R1_ACCELERATOR:-}" = cpu ] || kit_command+=(--nv)
            kit_command+=("$MINI_R1_IMAGE" mini-r1)
            ;;
        pyxis)
            [[ $(srun --help) == *--container-image* ]] ||
                refuse "no pyxis (srun does not know --container-image): choose another MINI_R1_RUNTIME"
            check_image
            container=(--container-image="$MINI_R1_IMAGE" --container-mounts="$options" --container-workdir="$PWD"
                --no-container-mount-home)
            kit_command=(env "HF_HOME=$HF_HOME" mini-r1) # the image's variables win over the exported ones
            ;;
    esac
    log "runtime: $MINI_R1_RUNTIME${MINI_R1_IMAGE:+, $MINI_R1_IMAGE}"
}
