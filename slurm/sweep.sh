#!/bin/bash
# An array over a table of overrides, one run per row: the original's ablation of learning rate and beta.
#
# Needs    for each row the resources of train_4xh100.sh; %2 below: two rows at a time
# Submit   sbatch slurm/sweep.sh [TABLE] [RECIPE] [OPTIONS OF mini-r1 launch]    (slurm/sweep.txt, mini-r1-3b)
#          sbatch --array=0-7 slurm/sweep.sh my.txt           another table: one task per row, from 0
# Watch    squeue --me; tail -f mini-r1-sweep-JOBID_ROW.log; the runs are in runs/TABLE'S NAME/ROW'S NAME
# Stop     scancel JOBID (all rows), scancel JOBID_2 (one)
# Resume   automatic for each row; otherwise submit the same line again: finished rows exit at once
#SBATCH --job-name=mini-r1-sweep
#SBATCH --array=0-3%2
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=200G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

kit=${MINI_R1_HOME:-${SLURM_SUBMIT_DIR:-}}
. "$kit/slurm/lib.sh" || {
    echo "error: no kit in '$kit': set MINI_R1_HOME, or cd KIT && sbatch slurm/sweep.sh" >&2
    exit 78
}

sweep slurm/sweep.txt mini-r1-3b "$@"
