#!/bin/bash
# GRPO on one node with 4 GPUs: 3 train, the last one is vLLM's.
#
# Needs    1 node, 4 GPUs of 80 GiB, 32 cores, 200 GiB of memory, 250 GiB of disk for the run
# Site     slurm/site.env, once; then in the shell that submits:  . slurm/site.env
# Submit   sbatch slurm/train_4xh100.sh [RECIPE] [OPTIONS OF mini-r1 launch]           (RECIPE: mini-r1-3b)
#          sbatch --gpus-per-node=2 slurm/train_4xh100.sh mini-r1-1.5b                any other number: other roles
# Watch    squeue --me; tail -f mini-r1-JOBID.log; mini-r1 health runs/mini-r1-3b
# Stop     scancel JOBID: it saves where KillWait lets it, and is not requeued
# Resume   by itself after a time limit, a preemption or a lost node; else the same line again
#SBATCH --job-name=mini-r1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=200G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

kit=${MINI_R1_HOME:-${SLURM_SUBMIT_DIR:-}}
if ! [ -r "$kit/slurm/lib.sh" ]; then
    echo "error: no kit in '$kit': submit from the kit's folder (cd KIT && sbatch slurm/train_4xh100.sh), or name it in MINI_R1_HOME" >&2
    exit 78
fi
. "$kit/slurm/lib.sh"

train mini-r1-3b "$@"
