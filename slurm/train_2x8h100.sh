#!/bin/bash
# GRPO on two nodes with 8 GPUs each: 7 + 8 train, vLLM runs on the last GPU of node 0.
#
# Needs    2 nodes, on each 8 GPUs of 80 GiB, 64 cores, 600 GiB of memory; 600 GiB of shared disk for the run
# Site     create slurm/site.env once, and source it before you submit:  . slurm/site.env
# Submit   sbatch slurm/train_2x8h100.sh [RECIPE] [OPTIONS OF mini-r1 launch]           (RECIPE: mini-r1-7b)
# Watch    squeue --me; tail -f mini-r1-JOBID.log; mini-r1 health runs/mini-r1-7b
# Stop     scancel JOBID: it saves if KillWait is long enough, and is not requeued
# Resume   automatic after a time limit, a preemption or a lost node; otherwise submit the same line again
#SBATCH --job-name=mini-r1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=600G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@900
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

kit=${MINI_R1_HOME:-${SLURM_SUBMIT_DIR:-}}
. "$kit/slurm/lib.sh" || {
    echo "error: no kit in '$kit': set MINI_R1_HOME, or cd KIT && sbatch slurm/train_2x8h100.sh" >&2
    exit 78
}

train mini-r1-7b "$@"
