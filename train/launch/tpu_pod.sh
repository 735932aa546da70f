#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU pod, one process for each host. Run it on your own machine, with gcloud set up:
#
#     train/launch/tpu_pod.sh my-pod us-west4-a brats21 --data /data/BraTS2021 --out /data/runs/brats --batch 256
#     train/launch/tpu_pod.sh my-pod us-west4-a --resume /data/runs/brats
#
# Name and zone of the TPU first; what follows goes to `python -m train` as it is. All hosts must see the data set and --out under the
# same names: a Filestore share, or a bucket mounted on each (gcsfuse). --batch is a multiple of the number of chips.
# `python -m tools.pod_plan --topology v5e:16x16` tells beforehand what fits and how long a step takes.

set -euo pipefail

[ $# -ge 3 ] || { echo "usage: $0 TPU ZONE RECIPE [--field value …]" >&2; exit 2; }
tpu=$1 zone=$2
shift 2

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$tpu" --zone "$zone" --worker=all --command "$1"
}

# The project on every host, and what it needs.
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output "$archive" HEAD  # what is committed
gcloud compute tpus tpu-vm scp "$archive" "$tpu":swinunetr.tar.gz --zone "$zone" --worker=all
on_all_hosts "mkdir -p swinunetr && tar --extract --gzip --file swinunetr.tar.gz --directory swinunetr && cd swinunetr &&
  python3 -m venv .venv && .venv/bin/pip install --quiet '.[tpu]'"

# `detect`: JAX asks the TPU which host this is and where the first one listens. printf %q keeps each argument whole on the way.
on_all_hosts "cd swinunetr && exec .venv/bin/python -m train $(printf '%q ' "$@") --distributed detect"
