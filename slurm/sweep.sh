#!/bin/bash
# An array over a table of overrides, a run for each row: the original's ablation of learning rate and beta.
#
# Needs    for each row what train_4xh100.sh needs; %2 below: two rows at a time
# Submit   sbatch slurm/sweep.sh [TABLE] [RECIPE] [OPTIONS OF mini-r1 launch]    (slurm/sweep.txt, mini-r1-3b)
#          sbatch --array=0-7 slurm/sweep.sh my.txt           another table: one task for each row, counted from 0
# Watch    squeue --me; tail -f mini-r1-sweep-JOBID_ROW.log; the runs are in runs/TABLE'S NAME/ROW'S NAME
# Stop     scancel JOBID (all rows), scancel JOBID_2 (one)
# Resume   each row by itself; else the same line again: finished rows say so and end
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
if ! [ -r "$kit/slurm/lib.sh" ]; then
    echo "error: no kit in '$kit': submit from the kit's folder (cd KIT && sbatch slurm/sweep.sh), or name it in MINI_R1_HOME" >&2
    exit 78
fi
. "$kit/slurm/lib.sh"

sweep slurm/sweep.txt mini-r1-3b "$@"
