#!/usr/bin/env bash
# Trains on the GPUs of a SLURM allocation, one process for each GPU:
#
#     sbatch --nodes 2 train/launch/slurm.sh brats21 --data /shared/BraTS2021 --out /shared/runs/brats --batch 16
#     sbatch --nodes 2 train/launch/slurm.sh --resume /shared/runs/brats
#
# The arguments of the script are passed to `python -m train` unchanged. Run it from the project's folder. The data set and --out must have
# the same paths on all nodes, and --batch must be a multiple of the number of processes.

#SBATCH --job-name=swinunetr
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Two minutes before the time limit, SLURM sends a SIGTERM to the trainer, which saves its state and ends with code 143. The job is then
# queued again at the end of this script.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

# A job that is queued or submitted again continues its run.
arguments=("$@") run=runs/latest
for ((i = 0; i < $#; i++)); do
  case ${arguments[i]} in
    --out) run=${arguments[i + 1]} ;;
    --out=*) run=${arguments[i]#--out=} ;;
    --resume | --resume=*) run= ;;
  esac
done
if [ -n "$run" ] && [ -e "$run/run.json" ]; then
  echo "$run already holds a run, which continues with its own options"
  arguments=(--resume "$run")
fi

# `python -m train` reads the number of its process and the address of the first node from the variables that srun sets. If one process
# fails, the others end by themselves. srun must not end them, because their code would then be 143 and the job would be queued again.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun does not inherit it from the job
code=0
srun --kill-on-bad-exit=0 "${PYTHON:-python}" -m train "${arguments[@]}" || code=$?
if [ "$code" = 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
