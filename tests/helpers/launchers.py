"""Stand-ins for gcloud, srun, scontrol and kubectl, which run the commands of the launch scripts on this machine.

A test puts them into a folder at the beginning of PATH. Each call of them is a line of the file `calls`.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from helpers.runner import ROOT, SECONDS

LAUNCH = ROOT / "train" / "launch"

# The queued resource is the file `queued`: a line for each answer of `describe`, of which the last one is repeated. A new resource takes
# its lines from the file `new`. Each host has a folder as its home, which is lost when the resource is deleted. A host with a file `silent`
# cannot be reached. As in gcloud, the code of a command on all hosts has no meaning.
GCLOUD = r"""#!/bin/bash
words=("$@") command= file=
for ((i = 0; i < $#; i++)); do [ "${words[i]}" = --command ] && command=${words[i + 1]}; done
case "$3 $4" in
  "queued-resources describe")
    echo "describe" >>calls
    [ -e queued ] || { echo "ERROR: (gcloud) NOT_FOUND: Resource '$5' was not found" >&2; exit 1; }
    head -n 1 queued
    [ "$(wc -l <queued)" = 1 ] || sed -i 1d queued
    ;;
  "queued-resources create")
    echo "create ${*:5}" >>calls
    [ ! -e no-capacity ] || exit 1
    { [ -e new ] && head -n 1 new || echo ACTIVE; } | tr ' ' '\n' >queued
    [ ! -e new ] || { sed -i 1d new; [ -s new ] || rm new; }
    ;;
  "queued-resources delete") echo "delete ${*:5}" >>calls; rm -rf queued host0 host1 ;;
  "tpu-vm describe")
    echo "vm" >>calls
    state=READY; [ ! -e vm-state ] || state=$(cat vm-state)
    printf "$state\t10.0.0.1\n$state\t10.0.0.2\n" ;;
  "tpu-vm scp") echo "scp" >>calls; mkdir -p host0 host1; for host in host0 host1; do cp "$5" $host/swinunetr.tar.gz; done ;;
  "tpu-vm ssh")
    case $command in *"pip install"*) word=install ;; *"-m train"*) word=train ;; *": here"*) word=probe ;; *) word=stop ;; esac
    echo $word >>calls
    for host in 0 1; do
      [ ! -e host$host/silent ] || continue
      (cd host$host && HOME=$PWD HOST=$host exec bash -c "$command") &
    done
    wait
    ;;
esac
"""
PYTHON3 = r"""#!/bin/bash
# The Python of a host: it makes a virtual environment whose Python is the stand-in for the trainer.
[ "$2" = venv ] || exit 0
mkdir -p .venv/bin
printf '#!/bin/bash\nexit 0\n' >.venv/bin/pip
printf '#!/bin/bash\nexec -a train-%s bash %s "$@"\n' "$HOST" "$TRAINER" >.venv/bin/python
chmod +x .venv/bin/*
"""
# The n-th try uses the n-th word of CODES, such as 3,137, whose parts are the codes of the two processes, and prints the n-th part of
# POSITIONS. `lost` is a connection that is lost, `silent` a host that no longer answers, `preempted` a pod that is preempted,
# `consequence` an exception that this causes, and `wait` a trainer that continues until it is stopped.
TRAINER = r"""#!/bin/bash
host=$HOST$SLURM_PROCID$JOB_COMPLETION_INDEX
echo >>"$TEST/tries$host"
number=${START:-$(wc -l <"$TEST/tries$host")}
[ "$host" = 1 ] || echo "$*" >>"$TEST/commands"
IFS=';' read -ra positions <<<"$POSITIONS"
[ "$host" = 1 ] || echo "2 × tpu of 2 processes, ${positions[number - 1]:-from the start}"
read -ra codes <<<"$CODES"
IFS=, read -ra each <<<"${codes[number - 1]}"
case ${each[host]} in
  lost) kill -9 $PPID ;;
  silent) touch "$TEST/host$host/silent"; kill -9 $PPID ;;
  preempted) echo SUSPENDED >"$TEST/queued"; kill -9 $PPID ;;
  consequence) echo SUSPENDED >"$TEST/queued"; exit 1 ;;
  wait) trap 'touch "$TEST/saved$host"; exit 143' TERM; touch "$TEST/started$host"; while true; do sleep 0.02; done ;;
  *) exit "${each[host]}" ;;
esac
"""
# This trainer kills process 1 of the first try as soon as the command SAVED succeeds. If there is a queued resource, it is preempted.
KILLED_TRAINER = r"""#!/bin/bash
host=$HOST$SLURM_PROCID$JOB_COMPLETION_INDEX
echo >>"$TEST/tries$host"
number=${START:-$(wc -l <"$TEST/tries$host")}
words=("$@") kept=()
for word in "${words[@]}"; do case $word in -m | train | --distributed | detect | --distributed=detect) ;; *) kept+=("$word") ;; esac; done
port=$(sed -n "${number}p" "$TEST/ports")
[ -n "$SLURM_PROCID" ] || kept+=(--distributed "localhost:$port" --processes 2 --process "$host")
[ -z "$HOST" ] || export SWINUNETR_SCRATCH=$HOME/scratch
"$REAL_PYTHON" "$RUN_TRAIN" "${kept[@]}" &
if [ "$number$host" = 11 ]; then
  until eval "$SAVED"; do sleep 0.05; done
  [ ! -e "$TEST/queued" ] || echo SUSPENDED >"$TEST/queued"
  kill -9 $!
fi
wait $!
"""
SRUN = r"""#!/bin/bash
shift  # --kill-on-bad-exit
echo "srun" >>"$TEST/calls"
export SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & processes[task]=$!; done
highest=0
for task in 0 1; do
  code=0; wait ${processes[task]} || code=$?
  [ $code = 0 ] || echo "srun: error: node: task $task: Exited with exit code $code" >&2
  [ $code -le $highest ] || highest=$code
done
exit $highest
"""


@dataclass(frozen=True)
class Launcher:
    """A folder with the stand-ins, in which the launch scripts run."""

    folder: Path
    environment: Mapping[str, str]

    def command(self, script: str, *arguments: str) -> list[str]:
        return ["bash", str(LAUNCH / script), *arguments]

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a launch script, or another program of the folder, to its end."""
        program = self.command(script, *arguments) if script.endswith(".sh") else [str(self.folder / "bin" / script), *arguments]
        return subprocess.run(
            program, env={**self.environment, **environment}, cwd=self.folder, capture_output=True, text=True, timeout=SECONDS
        )

    def calls(self) -> list[str]:
        """Returns the calls of the stand-ins, without the descriptions of the queued resource and of the TPU VM."""
        return [line for line in (self.folder / "calls").read_text().splitlines() if line not in ("describe", "vm")]


def make_launcher(folder: Path, trainer: str = TRAINER) -> Launcher:
    """Returns a launcher whose trainer is the script `trainer`."""
    tools = folder / "bin"
    tools.mkdir(parents=True)
    kubectl = f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests" / "helpers" / "kubectl.py"} "$@"\n'
    # The project is a folder without a repository here, so that `git` only has to make an empty archive.
    git = '#!/bin/bash\n[ "$1" = status ] || tar --create --gzip --files-from /dev/null --file "$4"\n'
    scripts = {"gcloud": GCLOUD, "python3": PYTHON3, "srun": SRUN, "kubectl": kubectl, "git": git}
    scripts["scontrol"] = '#!/bin/sh\necho "scontrol $*" >>"$TEST/calls"\n'
    scripts["python"] = f'#!/bin/bash\nexec bash {folder / "trainer"} "$@"\n'  # for srun
    scripts["swinunetr"] = scripts["python"]  # in the container of the JobSet
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (folder / "trainer").write_text(trainer)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "TEST": str(folder),
        "TRAINER": str(folder / "trainer"),
        "POLL_SECONDS": "0",
        "RETRY_SECONDS": "0",
    }
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHON"}  # an option of slurm.sh
    return Launcher(folder, inherited | environment)
