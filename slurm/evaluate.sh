#!/bin/bash
# Held-out success of a run: its newest snapshot, or the untrained model and every snapshot.
#
# Needs    1 GPU, 8 cores, 48 GiB of memory
# Submit   sbatch --dependency=afterok:JOBID slurm/evaluate.sh runs/mini-r1-3b    after that job, if it finishes the run
#          sbatch slurm/evaluate.sh runs/mini-r1-3b all                           every snapshot, and the untrained model
#          sbatch slurm/evaluate.sh runs/mini-r1-3b --samples 8                   any option of mini-r1 evaluate
# Watch    squeue --me; tail -f mini-r1-evaluate-JOBID.log; the result is evaluation/step-N.json in the run directory
# Stop     scancel JOBID. Requeued after a preemption or a lost node; `all` skips the snapshots that are measured
#SBATCH --job-name=mini-r1-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=48G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# If the training fails, the dependency can never hold: Slurm then removes the evaluation from the queue.
#SBATCH --kill-on-invalid-dep=yes

kit=${MINI_R1_HOME:-${SLURM_SUBMIT_DIR:-}}
. "$kit/slurm/lib.sh" || {
    echo "error: no kit in '$kit': set MINI_R1_HOME, or cd KIT && sbatch slurm/evaluate.sh" >&2
    exit 78
}

evaluate "$@"
