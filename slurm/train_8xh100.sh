#!/bin/bash
# GRPO on one node with 8 GPUs: 7 train, the last one runs vLLM.
#
# Needs    1 node, 8 GPUs of 80 GiB, 64 cores, 400 GiB of memory, 250 GiB of disk for the run
# Site     create slurm/site.env once, and source it before you submit:  . slurm/site.env
# Submit   sbatch slurm/train_8xh100.sh [RECIPE] [OPTIONS OF mini-r1 launch]           (RECIPE: mini-r1-3b-8gpu)
# Watch    squeue --me; tail -f mini-r1-JOBID.log; mini-r1 health runs/mini-r1-3b-8gpu
# Stop     scancel JOBID: it saves if KillWait is long enough, and is not requeued
# Resume   automatic after a time limit, a preemption or a lost node; otherwise submit the same line again
#SBATCH --job-name=mini-r1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=400G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

kit=${MINI_R1_HOME:-${SLURM_SUBMIT_DIR:-}}
. "$kit/slurm/lib.sh" || {
    echo "error: no kit in '$kit': set MINI_R1_HOME, or cd KIT && sbatch slurm/train_8xh100.sh" >&2
    exit 78
}

train mini-r1-3b-8gpu "$@"
