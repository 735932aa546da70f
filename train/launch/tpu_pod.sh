#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU pod, one process for each host, and tries again after a preemption or a lost host. Run it in the
# project's folder, on a machine that stays on and has gcloud configured (`gcloud config set project …`):
#
#     train/launch/tpu_pod.sh --accelerator-type v5litepod-256 --runtime-version v2-alpha-tpuv5-lite --spot my-pod us-west4-a \
#         brats21 --data gs://bucket/brats --out gs://bucket/runs/brats --batch 256
#     train/launch/tpu_pod.sh my-pod us-west4-a brats21 --data /data/BraTS2021 --out /data/runs/brats --batch 256
#
# The first command requests the pod as a queued resource; the second one uses a TPU VM that exists. After the name and the zone, all
# arguments are passed to `python -m train` unchanged. --data and --out are in a bucket, or have the same paths on all hosts, as on a
# Filestore share that each host mounts. --batch must be a multiple of the number of chips. Only committed files are copied to the hosts.
# `python -m tools.pod_plan --topology v5e:16x16` estimates beforehand what fits and how long a step takes.
#
# Options, before the name:
#   --accelerator-type TYPE    request a queued resource of this type; without it, the TPU VM must exist
#   --runtime-version VERSION  the software of its hosts: v2-alpha-tpuv5-lite for v5e, v2-alpha-tpuv6e for v6e
#   --spot                     request spot capacity, which is cheaper and may be preempted
#   --create-flag FLAG         a further flag of `gcloud compute tpus queued-resources create`, such as --create-flag=--network=mine; may be
#                              repeated
#   --tries N                  end after N tries in a row without a newly saved step; 10 if not given
#   --delete                   delete the queued resource at the end; otherwise it is kept, and costs money
# Environment variables: POLL_SECONDS (30) is the time between two queries of the state of the queued resource, RETRY_SECONDS (30) the pause
# before another try. The pause doubles with each try without progress, up to 16 times.
#
# What happens when the trainers end: 0 on all hosts ends the script. Codes 1 (a fault), 2 (a mistake in the options or the data) and 130
# (interrupted) end it with that code. Codes 3 (another process was lost or hangs), 134 (JAX's runtime aborted), 137 (killed) and 143
# (stopped), a host that ssh lost, and a preempted pod are followed by the same command again, which continues the run. A killed or lost
# host and a preemption come first, because they make other hosts fail with any code. A pod that still exists is used again, since a new
# one may take hours to get. It is deleted and requested again if it is suspended, if a host does not answer, or if a second try on it
# makes no progress.
#
# If this script is interrupted, it stops the trainers, which save their state. If it is killed, they continue, and the next call ends them.
#
# The commands and states are those of the Google Cloud CLI reference and of "Manage queued resources", as read in November 2026:
# https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources, https://docs.cloud.google.com/tpu/docs/queued-resources.
# WAITING_FOR_RESOURCES replaced ACCEPTED there, and a SUSPENDED or FAILED request stays until it is deleted. Newer chips than v6e are
# not offered by this API: use jobset.yaml for them.

set -euo pipefail
export CLOUDSDK_CORE_DISABLE_PROMPTS=1 # gcloud must not wait for an answer to a question

again=75                                    # what functions return if another try may help
marker=swinunetr-host                       # the beginning of the lines that hosts print for this script
poll=${POLL_SECONDS:-30} pause=${RETRY_SECONDS:-30}
accelerator='' runtime='' spot=0 delete=0 tries=10 flags=()
created=0 installed=0 training=0 hosts=0 state='' reason=''

say() { echo "tpu_pod.sh: $*" >&2; }

usage() {
  say "$1; usage: $0 [--accelerator-type TYPE --runtime-version VERSION [--spot] [--create-flag FLAG] [--delete]] [--tries N]" \
    "NAME ZONE RECIPE [--field value …]"
  exit 2
}

queued() { # COMMAND [FLAG …]
  gcloud compute tpus queued-resources "$1" "$name" --zone "$zone" "${@:2}"
}

# Prints the state of the queued resource, NONE if there is none, or UNREADABLE if gcloud fails, whose message is then in $work/error.
queued_state() {
  queued describe --format='value(state.state)' 2>"$work/error" && return
  if grep -qiE 'not.found' "$work/error"; then echo NONE; else echo UNREADABLE; fi
}

create() {
  local all=(--node-id "$name" --accelerator-type "$accelerator" --runtime-version "$runtime")
  [ "$spot" = 0 ] || all+=(--spot)
  say "requesting $accelerator as the queued resource $name"
  queued create "${all[@]}" ${flags[@]+"${flags[@]}"}
}

delete_resource() {
  say "deleting the queued resource $name"
  installed=0 on_this_pod=0
  for ((look = 0; look < 60; look++)); do
    case $(queued_state) in
      NONE) return 0 ;;
      SUSPENDING | DELETING | UNREADABLE) sleep "$poll" ;;
      *) queued delete --force || sleep "$poll" ;;
    esac
  done
  say "the queued resource $name could not be deleted: delete it by hand, and give the same command again"
  exit 1
}

# Waits until the queued resource is active. It is created if there is none, and created again if it can no longer become active.
wait_until_active() {
  local state before='' requested=0
  while true; do
    state=$(queued_state)
    if [ "$state" = UNREADABLE ] && [ "$created" = 0 ]; then
      say "gcloud cannot read the queued resource $name: $(head -n 1 "$work/error")"
      exit 2
    fi
    if [ "$state" != "$before" ] && [ "$state" != NONE ]; then
      if [ "$state" = ACTIVE ]; then say "$name is ACTIVE"; else say "waiting for $name to become ACTIVE: it is $state"; fi
    fi
    before=$state
    case $state in
      ACTIVE) created=1 && return 0 ;;
      NONE)
        if ! create; then
          [ "$created" = 1 ] || { say "gcloud could not request the queued resource: see its message above"; exit 2; }
          reason='gcloud could not request the queued resource'
          return "$again"
        fi
        created=1 requested=1
        ;;
      SUSPENDED | FAILED)
        delete_resource
        [ "$requested" = 0 ] || { reason="the new queued resource was $state"; return "$again"; }
        ;;
      *) sleep "$poll" ;;
    esac
  done
}

# Sets `hosts` to the number of hosts of the TPU VM, and `state` to its state or nothing. Fails unless it is ready.
count_hosts() {
  local lines
  # gcloud prints a line with the state for each host.
  lines=$(gcloud compute tpus tpu-vm describe "$name" --zone "$zone" --flatten='networkEndpoints[]' \
    --format='value(state,networkEndpoints.ipAddress)') || lines=''
  state=$(echo "$lines" | awk 'NR == 1 {print $1}')
  hosts=$(echo "$lines" | grep -c . || true)
  [ "$state" = READY ] || { reason="the TPU VM $name is not ready (state: ${state:-none})"; return 1; }
}

on_all_hosts() { # COMMAND; the code of gcloud for several hosts says little, so that commands print lines that are counted
  # A connection to a host that is gone ends after two minutes.
  gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all \
    --ssh-flag='-o ServerAliveInterval=20' --ssh-flag='-o ServerAliveCountMax=6' --command "$1" </dev/null
}

# Returns whether the pod still exists and all of its hosts answer.
all_answer() {
  { [ -z "$accelerator" ] || [ "$(queued_state)" = ACTIVE ]; } && count_hosts && [ "$(on_all_hosts "printf '\n$marker: here\n'" | grep -c "$marker: here")" = "$hosts" ]
}

# Copies the project to every host, and installs it. Hosts with an older Python than 3.11 get a newer one by uv.
install() {
  local extras=tpu
  case " $* " in *gs://*) extras+=,gcs ;; esac
  case " $* " in *s3://*) extras+=,s3 ;; esac
  say "copying the project to $hosts hosts, and installing it there"
  gcloud compute tpus tpu-vm scp "$work/archive" "$name":swinunetr.tar.gz --zone "$zone" --worker=all &&
    on_all_hosts "mkdir -p swinunetr && tar --extract --gzip --file swinunetr.tar.gz --directory swinunetr && cd swinunetr &&
      { [ -x .venv/bin/pip ] ||
        if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python3 -m venv .venv
        else python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --seed --python 3.12 .venv; fi; } &&
      .venv/bin/pip install --quiet '.[$extras]' && printf '\n$marker: installed\n'" | tee "$work/output"
  installed=$(grep -c "$marker: installed" "$work/output" || true)
  [ "$installed" = "$hosts" ] || { reason="the project was installed on $installed of $hosts hosts" installed=0; return "$again"; }
}

# This runs on a host and ends the trainer of an earlier try, if there is one, which has a minute to save its state.
# shellcheck disable=SC2016 # the host expands it
end_trainer='pid=$(cat swinunetr.pid 2>/dev/null) && grep -qs train "/proc/$pid/cmdline" && {
  echo "ending the trainer of an earlier try, process $pid"; kill "$pid"
  for look in $(seq 300); do [ -e "/proc/$pid" ] || break; sleep 0.2; done
  if [ -e "/proc/$pid" ]; then kill -9 "$pid"; fi; }; rm -f swinunetr.pid'

# Runs the trainer on all hosts, and returns 0 if it finished on all of them, `again`, or the code to end with.
train() {
  local codes count code=0 each
  training=1
  # With `detect`, JAX asks the TPU for the number of this host and the address of the first one. printf %q quotes each argument.
  on_all_hosts "$end_trainer; cd swinunetr && (echo \$BASHPID >../swinunetr.pid; exec .venv/bin/python -m train \
    $(printf '%q ' "$@") --distributed detect); code=\$?; rm -f ../swinunetr.pid; printf '\n$marker: code %s\n' \$code" |
    tee "$work/output" &
  wait "$!" || true # unlike a command in the foreground, `wait` lets the traps run at once
  training=0
  codes=$(grep -oE "$marker: code [0-9]+" "$work/output" | awk '{printf "%s ", $3}' || true)
  count=$(echo "$codes" | wc -w)
  reason="the trainers ended with the codes $codes"
  reason=${reason% }
  if [ "$count" -lt "$hosts" ]; then
    reason="the connection to $((hosts - count)) of $hosts hosts was lost"
    return "$again"
  fi
  for each in $codes; do [ "$each" = 0 ] || code=$each; done
  for each in 143 134 3 130 1 2 137; do # a later one is more likely to be the cause of the others
    case " $codes" in *" $each "*) code=$each ;; esac
  done
  case $code in
    3 | 134 | 137 | 143) return "$again" ;;
    1 | 2) all_answer || return "$again" ;;
  esac
  return "$code"
}

attempt() {
  if [ -n "$accelerator" ]; then wait_until_active || return "$again"; fi
  if ! count_hosts; then
    # If the state is empty, gcloud could not query it, which another try may.
    [ -n "$accelerator" ] || { [ -z "$state" ] && [ "$failures" -gt 0 ]; } && return "$again"
    say "$reason: create it, or let this script request it with --accelerator-type"
    exit 2
  fi
  [ "$installed" != 0 ] || install "$@" || return "$again"
  train "$@"
}

finish() { # CODE
  case $1 in
    0) say 'the run is finished' ;;
    1) say 'ending: a trainer failed with an unexpected exception (code 1)' ;;
    2) say 'ending: a trainer reports a mistake in its options or its data (code 2)' ;;
    3) say "ending: $failures tries in a row saved no new step, the last one because $reason" ;;
    130) say 'ending: a trainer was interrupted (code 130)' ;;
    *) say "ending: a trainer ended with the code $1" ;;
  esac
  close "$1"
}

close() { # CODE
  if [ -n "$accelerator" ] && [ "$delete" = 1 ]; then
    delete_resource
  elif [ -n "$accelerator" ]; then
    say "the queued resource is kept: delete it with gcloud compute tpus queued-resources delete $name --zone $zone --force"
  fi
  exit "$1"
}

interrupted() { # CODE
  trap '' INT TERM
  if [ "$training" = 1 ]; then
    say 'interrupted: stopping the trainers, which save their state'
    on_all_hosts "$end_trainer" || true
    wait || true
  fi
  close "$1"
}

while [ $# -gt 0 ]; do
  case $1 in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
  case $1 in --accelerator-type | --runtime-version | --create-flag | --tries) [ $# -ge 2 ] || usage "$1 needs a value" ;; esac
  case $1 in
    --accelerator-type) accelerator=$2 && shift 2 ;;
    --runtime-version) runtime=$2 && shift 2 ;;
    --create-flag) flags+=("$2") && shift 2 ;;
    --tries) tries=$2 && shift 2 ;;
    --spot) spot=1 && shift ;;
    --delete) delete=1 && shift ;;
    -*) usage "there is no option $1" ;;
    *) break ;;
  esac
done
[ $# -ge 3 ] || usage 'the name, the zone and the arguments of the trainer are missing'
[[ $tries =~ ^[1-9][0-9]*$ ]] || usage "--tries must be a positive number, got $tries"
[ -z "$accelerator" ] || [ -n "$runtime" ] || usage '--accelerator-type needs --runtime-version'
[ -n "$accelerator" ] || [ "$runtime$spot$delete${#flags[@]}" = 000 ] ||
  usage '--runtime-version, --spot, --delete and --create-flag need --accelerator-type'
name=$1 zone=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The archive is written once, so that all tries have the same code.
[ -z "$(git status --porcelain --untracked-files=no)" ] || say 'changes that are not committed are not copied to the hosts'
git archive --format=tar.gz --output "$work/archive" HEAD
trap 'interrupted 130' INT
trap 'interrupted 143' TERM

failures=0 on_this_pod=0 position=''
while true; do
  code=0
  : >"$work/output"
  attempt "$@" || code=$?
  [ "$code" = "$again" ] || finish "$code"
  # The trainer prints where it starts. If that has changed since the last try, the last try has saved a step.
  reached=$(grep -oE 'continuing after step [0-9]+|from the start' "$work/output" || true)
  if [ -n "$reached" ] && [ "$reached" != "$position" ]; then
    failures=0 on_this_pod=0 position=$reached
  fi
  failures=$((failures + 1)) on_this_pod=$((on_this_pod + 1))
  [ "$failures" -lt "$tries" ] || finish 3
  seconds=$((failures < 5 ? pause << (failures - 1) : pause * 16))
  say "trying again in $seconds s, because $reason"
  sleep "$seconds"
  if [ -n "$accelerator" ] && [ "$created" = 1 ]; then
    while queue=$(queued_state) && [ "$queue" = UNREADABLE ]; do
      say "waiting until gcloud can read the queued resource: $(head -n 1 "$work/error")"
      sleep "$poll"
    done
    if [ "$queue" = ACTIVE ] && { [ "$on_this_pod" -ge 2 ] || ! all_answer; }; then delete_resource; fi
  fi
done
