"""A stand-in for kubectl and for the controllers of JobSet and Job: `kubectl apply --filename FILE` runs the pods on this machine.

It knows the fields of train/launch/jobset.yaml: a pod that fails ends its job, whose other pods receive SIGTERM and after the grace period
SIGKILL. The reason of the failure is PodFailurePolicy if a rule of `podFailurePolicy` matches the pod's code, otherwise
BackoffLimitExceeded. The rules of `failurePolicy` then decide whether the JobSet fails or all pods are started again. The program ends
with code 1 if the JobSet failed.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml


def run_job(job: dict[str, Any], start: int) -> str | None:
    """Runs the pods of a job, and returns the reason of its failure, or None. Each pod receives the number of the start, counted from 1."""
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    assert spec["parallelism"] == spec["completions"] and spec["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    pods = [
        subprocess.Popen(
            container["args"],
            env=os.environ | {"JOB_COMPLETION_INDEX": str(index), "START": str(start)},
            start_new_session=True,
        )
        for index in range(spec["parallelism"])
    ]
    while True:
        codes = [process.poll() for process in pods]
        failed = [code if code > 0 else 128 - code for code in codes if code]
        if failed or None not in codes:
            break
        time.sleep(0.01)
    if not failed:
        return None
    for number in (signal.SIGTERM, signal.SIGKILL):  # each is sent to the processes of every pod
        for process in pods:
            if process.poll() is None:
                os.killpg(process.pid, number)
        deadline = time.monotonic() + pod["terminationGracePeriodSeconds"]
        while time.monotonic() < deadline and None in [process.poll() for process in pods]:
            time.sleep(0.01)
    for rule in spec["podFailurePolicy"]["rules"]:
        condition = rule["onExitCodes"]
        assert (rule["action"], condition["operator"], condition["containerName"]) == ("FailJob", "In", container["name"])
        if failed[0] in condition["values"]:
            return "PodFailurePolicy"
    return "BackoffLimitExceeded"


def main() -> int:
    assert sys.argv[1:3] == ["apply", "--filename"]
    jobset = yaml.safe_load(Path(sys.argv[3]).read_text())
    [job] = jobset["spec"]["replicatedJobs"]
    policy = jobset["spec"]["failurePolicy"]
    restarts = 0
    while (reason := run_job(job, restarts + 1)) is not None:
        actions = [rule["action"] for rule in policy["rules"] if reason in rule["onJobFailureReasons"]]
        print(f"a job failed with the reason {reason}", flush=True)
        if (actions or ["RestartJobSet"])[0] == "FailJobSet" or restarts == policy["maxRestarts"]:
            print("the JobSet failed")
            return 1
        restarts += 1
    print("the JobSet completed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
