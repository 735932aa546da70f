#!/usr/bin/env bash
# Trains on the GPUs of a SLURM allocation, one process for each GPU:
#
#     sbatch --nodes 2 train/launch/slurm.sh brats21 --data /shared/BraTS2021 --out /shared/runs/brats --batch 16
#     sbatch --nodes 2 train/launch/slurm.sh --resume /shared/runs/brats
#
# The arguments of the script are passed to `python -m train` unchanged. Run it from the project's folder. The data set and --out must have
# the same paths on all nodes, and --batch must be a multiple of the number of processes.
#
# The job is queued again, and then continues its run, if it was stopped before its time limit (code 143), or if a process was lost or hung
# (3), JAX's runtime aborted (134) or a process was killed (137). If no new step was saved in TRIES tries in a row that ended with 3, 134 or
# 137 (5 by default; `TRIES=9 sbatch …` sets it), the job ends with code 3. Any other code ends it at once: 1 is a fault, and 2 a mistake in the
# options or the data.

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
output=$(mktemp) code=0
trap 'rm -f "$output"' EXIT
srun --kill-on-bad-exit=0 "${PYTHON:-python}" -m train "${arguments[@]}" 2>&1 | tee "$output" || code=$?

requeue=false attempts=.swinunetr-attempts-$SLURM_JOB_ID  # it holds the number of tries without progress, and where the last one started
case $code in
  143) requeue=true ;;
  3 | 134 | 137)
    # The code of srun is the highest one of all processes. A process that failed by itself makes the others fail with 3 or 134.
    own=$(grep -oE '^srun: error: .*Exited with exit code (1|2|130)$' "$output" | awk 'NR == 1 {print $NF}' || true)
    if [ "$code" != 137 ] && [ -n "$own" ]; then
      code=$own
    else
      # The trainer prints where it starts. If that has changed since the last try, the last try has saved a step.
      position=$(grep -oE 'continuing after step [0-9]+|from the start' "$output" | tr '\n' ' ' || true)
      failures=0 before=
      if [ -e "$attempts" ]; then read -r failures before <"$attempts"; fi
      if [ -n "${position% }" ] && [ "${position% }" != "$before" ]; then failures=0 before=${position% }; fi
      failures=$((failures + 1))
      echo "$failures $before" >"$attempts"
      if [ "$failures" -lt "${TRIES:-5}" ]; then
        echo "the job is queued again, because a process of the trainer ended with code $code"
        requeue=true
      else
        echo "the job ends: $failures tries in a row saved no new step, the last one with code $code"
        code=3
      fi
    fi
    ;;
esac
if $requeue; then
  scontrol requeue "$SLURM_JOB_ID"
else
  rm -f "$attempts"
fi
exit "$code"
