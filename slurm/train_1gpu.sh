#!/bin/bash
# GRPO on one GPU, which also generates: adapters, without vLLM.
#
# Needs    1 GPU of 24 GiB, 8 cores, 32 GiB of memory
# Site     slurm/site.env, once; then in the shell that submits:  . slurm/site.env
# Submit   sbatch slurm/train_1gpu.sh [RECIPE] [OPTIONS OF mini-r1 launch]           (RECIPE: lora-1.5b)
# Watch    squeue --me; tail -f mini-r1-JOBID.log; mini-r1 health runs/lora-1.5b
# Stop     scancel JOBID: it saves where KillWait lets it, and is not requeued
# Resume   by itself after a time limit, a preemption or a lost node; else the same line again
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
if ! [ -r "$kit/slurm/lib.sh" ]; then
    echo "error: no kit in '$kit': submit from the kit's folder (cd KIT && sbatch slurm/train_1gpu.sh), or name it in MINI_R1_HOME" >&2
    exit 78
fi
. "$kit/slurm/lib.sh"

train lora-1.5b "$@"
