#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU pod, one process for each host. Run it on your own machine with gcloud configured:
#
#     train/launch/tpu_pod.sh my-pod us-west4-a brats21 --data /data/BraTS2021 --out /data/runs/brats --batch 256
#     train/launch/tpu_pod.sh my-pod us-west4-a --resume /data/runs/brats
#
# The first two arguments are the name and the zone of the TPU; the others are passed to `python -m train` unchanged. The data set and --out
# must have the same paths on all hosts, as on a Filestore share or a bucket that each host mounts (gcsfuse). --batch must be a multiple of
# the number of chips. `python -m tools.pod_plan --topology v5e:16x16` estimates beforehand what fits and how long a step takes.

set -euo pipefail

[ $# -ge 3 ] || { echo "usage: $0 TPU ZONE RECIPE [--field value …]" >&2; exit 2; }
tpu=$1 zone=$2
shift 2

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$tpu" --zone "$zone" --worker=all --command "$1"
}

# Copies the project to every host, and installs it.
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output "$archive" HEAD  # only what is committed
gcloud compute tpus tpu-vm scp "$archive" "$tpu":swinunetr.tar.gz --zone "$zone" --worker=all
on_all_hosts "mkdir -p swinunetr && tar --extract --gzip --file swinunetr.tar.gz --directory swinunetr && cd swinunetr &&
  python3 -m venv .venv && .venv/bin/pip install --quiet '.[tpu]'"

# With `detect`, JAX asks the TPU for the number of this host and the address of the first one. printf %q quotes each argument.
on_all_hosts "cd swinunetr && exec .venv/bin/python -m train $(printf '%q ' "$@") --distributed detect"
