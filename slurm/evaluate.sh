#!/bin/bash
# Held-out success of a run: its newest snapshot, or the untrained model and every snapshot.
#
# Needs    1 GPU, 8 cores, 48 GiB of memory
# Submit   sbatch --dependency=afterok:JOBID slurm/evaluate.sh runs/mini-r1-3b        when that job has finished the run
#          sbatch slurm/evaluate.sh runs/mini-r1-3b all                               every snapshot, and the untrained model
#          sbatch slurm/evaluate.sh runs/mini-r1-3b --samples 8                       any option of mini-r1 evaluate
# Watch    squeue --me; tail -f mini-r1-evaluate-JOBID.log
# Stop     scancel JOBID
# Resume   requeued after a preemption or a lost node; with `all` what is written already is not measured again
# Result   evaluation/step-N.json in the run directory
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
#SBATCH --kill-on-invalid-dep=yes
# A run that has failed is not evaluated: the dependency can never hold, and Slurm takes the job out of the queue.

kit=${MINI_R1_HOME:-${SLURM_SUBMIT_DIR:-}}
if ! [ -r "$kit/slurm/lib.sh" ]; then
    echo "error: no kit in '$kit': submit from the kit's folder (cd KIT && sbatch slurm/evaluate.sh), or name it in MINI_R1_HOME" >&2
    exit 78
fi
. "$kit/slurm/lib.sh"

evaluate "$@"
