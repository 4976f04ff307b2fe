#!/bin/bash
# GRPO on one GPU, which trains and runs vLLM: an adapter.
#
# Needs    1 GPU of 24 GiB, 8 cores, 32 GiB of memory
# Site     create slurm/site.env once, and source it before you submit:  . slurm/site.env
# Submit   sbatch slurm/train_1gpu.sh [RECIPE] [OPTIONS OF mini-r1 launch]           (RECIPE: lora-1.5b)
# Watch    squeue --me; tail -f mini-r1-JOBID.log; mini-r1 health runs/lora-1.5b
# Stop     scancel JOBID: it saves if KillWait is long enough, and is not requeued
# Resume   automatic after a time limit, a preemption or a lost node; otherwise submit the same line again
#SBATCH --job-name=mini-r1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

kit=${MINI_R1_HOME:-${SLURM_SUBMIT_DIR:-}}
. "$kit/slurm/lib.sh" || {
    echo "error: no kit in '$kit': set MINI_R1_HOME, or cd KIT && sbatch slurm/train_1gpu.sh" >&2
    exit 78
}

train lora-1.5b "$@"
