#!/bin/bash
# GRPO on two nodes with 8 GPUs each: 7 + 8 train, the first node's last one is vLLM's.
#
# Needs    2 nodes, on each 8 GPUs of 80 GiB, 64 cores, 600 GiB of memory; 600 GiB of shared disk for the run
# Site     slurm/site.env, once; then in the shell that submits:  . slurm/site.env
# Submit   sbatch slurm/train_2x8h100.sh [RECIPE] [OPTIONS OF mini-r1 launch]           (RECIPE: mini-r1-7b)
# Watch    squeue --me; tail -f mini-r1-JOBID.log; mini-r1 health runs/mini-r1-7b
# Stop     scancel JOBID: it saves where KillWait lets it, and is not requeued
# Resume   by itself after a time limit, a preemption or a lost node; else the same line again
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
if ! [ -r "$kit/slurm/lib.sh" ]; then
    echo "error: no kit in '$kit': submit from the kit's folder (cd KIT && sbatch slurm/train_2x8h100.sh), or name it in MINI_R1_HOME" >&2
    exit 78
fi
. "$kit/slurm/lib.sh"

train mini-r1-7b "$@"
