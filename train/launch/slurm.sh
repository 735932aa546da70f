#!/usr/bin/env bash
# Trains on the GPUs of a SLURM allocation, one process for each GPU:
#
#     sbatch --nodes 2 train/launch/slurm.sh brats21 --data /shared/BraTS2021 --out /shared/runs/brats --batch 16
#     sbatch --nodes 2 train/launch/slurm.sh --resume /shared/runs/brats
#
# What follows the script goes to `python -m train` as it is. Run it from the project's folder. All nodes must see the data set and
# --out under the same names; --batch is a multiple of the number of processes.

#SBATCH --job-name=swinunetr
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Two minutes before the time is up the trainer gets a SIGTERM: it saves, ends with 143, and below the job is queued again.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

# A job that is queued again, or submitted anew, goes on where it was.
arguments=("$@") run=runs/latest
for ((i = 0; i < $#; i++)); do
  case ${arguments[i]} in
    --out) run=${arguments[i + 1]} ;;
    --out=*) run=${arguments[i]#--out=} ;;
    --resume | --resume=*) run= ;;
  esac
done
if [ -n "$run" ] && [ -e "$run/run.json" ]; then
  echo "$run was begun before: it goes on with the options it was begun with"
  arguments=(--resume "$run")
fi

# srun tells each process which one it is; `python -m train` reads that by itself, and the first node's name for the meeting point.
# Where one process ends by an error, the others notice by themselves; srun's own way to end them would look like a SIGTERM (143).
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # which srun does not take over from the job
code=0
srun --kill-on-bad-exit=0 "${PYTHON:-python}" -m train "${arguments[@]}" || code=$?
if [ "$code" = 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
