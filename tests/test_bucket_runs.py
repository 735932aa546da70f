"""A run in a bucket ends with the bytes of an uninterrupted local run, wherever its process is killed and whatever is damaged."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.bucket_runs import Killed, bytes_in, kill_at
from helpers.buckets import Bucket
from helpers.runner import bytes_of
from helpers.small_network import forget, replace_swin_unetr
from helpers.training_runs import recipe

from swinunetr_jax import InputError
from swinunetr_jax.buckets import BucketError
from swinunetr_jax.buckets.run_objects import StoredState, logs, states, usable_states
from swinunetr_jax.data.phantom.dataset import write_phantom
from swinunetr_jax.training import Recipe, claim, command, loop, restore
from swinunetr_jax.training.bucket_store import BucketStore, pull
from swinunetr_jax.training.folds import train_folds
from swinunetr_jax.training.loop import train


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, cases=4, size=(48, 48, 32), seed=0)
    return folder


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    replace_swin_unetr(patch)
    patch.setattr(loop, "_draw", lambda *_: None)
    patch.setattr(claim, "LEASE_SECONDS", 0.4)
    yield
    patch.undo()
    forget()


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, small) -> Path:
    """Returns the folder of the uninterrupted local run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(wanted(data, run))
    return run


@pytest.fixture
def run(bucket, use_bucket, tmp_path, monkeypatch) -> Bucket:
    """Returns the place of a run in an empty bucket. The scratch folder is empty, too."""
    use_bucket(bucket)
    monkeypatch.setenv("SWINUNETR_SCRATCH", str(tmp_path / "scratch"))
    return bucket / "run"


def wanted(data: Path, out: str | Path, **changes) -> Recipe:
    return recipe(data, Path(out), save_every=1, keep=2, **changes)


@pytest.mark.long
def test_a_run_has_the_bytes_of_a_local_one_and_can_be_repeated(run, whole, data, tmp_path, monkeypatch, capsys):
    train(wanted(data, run.url))
    names = run.names()
    assert usable_states(names) == [StoredState(1, 4), StoredState(1, 3)] == sorted(states(names), reverse=True)
    assert {"run.json", "report.html", "log-000001.jsonl", "best/checkpoint.json"} <= set(names)
    assert not [name for name in names if "lock" in name or "last" in name or ".tmp" in name]
    assert json.loads(run.read("claims/000001"))["released"]
    assert json.loads(run.read("run.json"))["recipe"]["out"] == run.url
    assert bytes_in(run, tmp_path / "copy") == bytes_of(whole)
    assert str(tmp_path) not in capsys.readouterr().out.replace(str(data), "")  # the scratch folder is never printed

    monkeypatch.setattr(command, "keep_programs", lambda *_: None)
    before = run.digests()
    for changes, code, words in (({}, 0, "holds a finished run"), ({"seed": 1}, 2, "seed was 0 and is 1")):
        monkeypatch.setattr(command, "parse", lambda _, c=changes: (wanted(data, run.url, **c), False, command.Launch()))
        with pytest.raises(SystemExit) as ended:
            command.main([])
        printed = capsys.readouterr()
        assert ended.value.code == code and words in printed.out + printed.err and run.url in printed.out + printed.err
    assert run.digests() == before


KILLS = {
    "in the first upload": ("upload", "checkpoints/00000001.*/params", {}),
    "before the first commit": ("write", "checkpoints/00000001.*/training.json", {}),
    "after the first commit": ("write", "checkpoints/00000001.*/training.json", {"after": True}),
    "between the files of an upload": ("upload", "checkpoints/00000003.*/state", {}),
    "before a commit": ("write", "checkpoints/00000003.*/training.json", {}),
    "between the files of the best network": ("upload", "best/params.*/_METADATA", {}),
    "before the commit of the best network": ("write", "best/checkpoint.json", {}),
    "after the commit of the best network": ("write", "best/checkpoint.json", {"after": True}),
    "before the result of a validation": ("write", "checkpoints/00000002.*/training.json", {"count": 2}),
    "in a prune, after the commit": ("remove", "checkpoints/00000001.*/training.json", {"after": True}),
    "in a prune, between files": ("remove", "checkpoints/00000001.*/state", {"count": 2}),
    "before the report": ("upload", "report.html", {}),
}


@pytest.mark.long
@pytest.mark.parametrize("point", KILLS)
def test_a_run_that_is_killed_continues_on_an_empty_disk_to_the_same_bytes(point, run, whole, data, tmp_path, monkeypatch):
    operation, name, options = KILLS[point]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, operation, name, **options)
        train(wanted(data, run.url))
    monkeypatch.setenv("SWINUNETR_SCRATCH", str(tmp_path / "another machine"))
    train(wanted(data, run.url), resume=True)
    assert bytes_in(run, tmp_path / "copy") == bytes_of(whole)
    names = run.names()
    owner = 1 if point == "before the report" else 2  # the last state was complete there
    # The files of the killed process were removed.
    assert usable_states(names)[0] == StoredState(owner, 4) and len(states(names)) == 2
    assert {name.split("/")[1] for name in names if name.startswith("best/params")} == {
        json.loads(run.read("best/checkpoint.json"))["params"]
    }
    ours = {name: array.tobytes() for name, array in restore.read_checkpoint(tmp_path / "copy" / "best").params.items()}
    theirs = {name: array.tobytes() for name, array in restore.read_checkpoint(whole / "best").params.items()}
    assert ours == theirs


@pytest.mark.long
@pytest.mark.parametrize("damage", ["flipped array", "flipped description", "deleted file", "flipped commit", "empty commit"])
def test_a_damaged_state_is_marked_and_the_one_before_it_is_used(damage, run, whole, data, tmp_path, capsys):
    train(wanted(data, run.url, steps=3))
    newest = usable_states(run.names())[0].name
    arrays = next(name for name in run.names() if name.startswith(f"{newest}/state/") and "/d/" in name)
    if damage == "flipped array":
        run.flip(arrays)
    elif damage == "flipped description":
        run.flip(f"{newest}/checkpoint.json")
    elif damage == "deleted file":
        run.delete(arrays)
    elif damage == "flipped commit":
        run.flip(f"{newest}/training.json")
    else:
        run.write(f"{newest}/training.json", b"")
    capsys.readouterr()
    train(wanted(data, run.url, steps=3), resume=True)
    printed = capsys.readouterr().out
    warning = next(line for line in printed.splitlines() if line.startswith("warning: "))
    assert f"{run.url}/{newest}" in warning and "marked as damaged" in warning and "continuing after step 2" in printed
    assert "fault" in json.loads(run.read(f"{newest}/damaged.json"))
    assert usable_states(run.names())[0] == StoredState(2, 3)


@pytest.mark.long
def test_if_all_states_are_damaged_the_run_ends_with_a_sentence(run, data):
    train(wanted(data, run.url, steps=2))
    for state in usable_states(run.names()):
        run.flip(f"{state.name}/training.json")
    with pytest.raises(InputError, match=f"{run.url} holds no intact state to continue from"):
        train(wanted(data, run.url, steps=2), resume=True)


@pytest.mark.long
def test_a_longer_run_and_another_number_of_kept_states(run, whole, data, tmp_path):
    train(wanted(data, run.url, steps=2))
    train(wanted(data, run.url, steps=4), resume=True)
    names = run.names()
    assert [state.step for state in usable_states(names)] == [4, 3] and logs(names) == ["log-000002.jsonl", "log-000001.jsonl"]
    pulled = tmp_path / "pulled"
    rows = [json.loads(line) for line in run.read("log-000002.jsonl").splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1, 2, 3, 4]
    assert not pulled.exists() and pull(whole) is None  # a local run is not changed


@pytest.mark.long
def test_an_upload_that_is_forbidden_ends_the_run_at_the_next_step(run, whole, data, proxied, use_bucket, tmp_path):
    proxy = proxied(run)
    use_bucket(proxy.bucket)
    proxy.fail("403", "write", "checkpoints/00000001", times=None)
    with pytest.raises(
        BucketError, match=f"{run.url}/checkpoints/00000001-000001/.* cannot be written .*check the address and your"
    ):
        train(wanted(data, run.url))
    log = [json.loads(line) for name in logs(run.names()) for line in run.read(name).splitlines()]
    assert max((row["step"] for row in log), default=0) <= 2 and usable_states(run.names()) == []
    proxy.clear()
    train(wanted(data, run.url), resume=True)
    assert bytes_in(run, tmp_path / "copy") == bytes_of(whole)


@pytest.mark.long
def test_a_cross_validation_that_is_killed_at_its_end_is_not_finished(run, data, tmp_path, monkeypatch):
    wanted_folds = replace(wanted(data, run.url, steps=2), fold="all")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, "upload", "^postprocess.json$")
        train_folds(wanted_folds)
    assert not {"out_of_fold.json", "postprocess.json"} & set(run.names())
    monkeypatch.setenv("SWINUNETR_SCRATCH", str(tmp_path / "another machine"))
    train_folds(wanted_folds, resume=True)
    assert {"out_of_fold.json", "out_of_fold.csv", "postprocess.json", "fold0/report.html", "fold1/report.html"} <= set(
        run.names()
    )
    assert json.loads(run.read("claims/000002"))["released"]


@pytest.mark.long
def test_claims_that_a_user_removes_do_not_lose_states(run, whole, data, tmp_path):
    train(wanted(data, run.url, steps=2))
    train(wanted(data, run.url, steps=3), resume=True)
    for name in run.names():
        if name.startswith("claims/"):
            run.delete(name)
    train(wanted(data, run.url, steps=4), resume=True)
    assert usable_states(run.names()) == [StoredState(3, 4), StoredState(2, 3)]


@pytest.mark.long
def test_a_release_that_fails_does_not_hide_the_result(run, whole, data, tmp_path, proxied, use_bucket):
    proxy = proxied(run)
    use_bucket(proxy.bucket)
    proxy.fail("403", "write", "claims/", nth=2, times=None)
    train(wanted(data, run.url))
    assert bytes_in(run, tmp_path / "copy") == bytes_of(whole) and not json.loads(run.read("claims/000001"))["released"]


@pytest.mark.long
def test_a_bit_that_is_wrong_only_in_transit_does_not_cost_a_state(run, whole, data, tmp_path, monkeypatch, capsys):
    train(wanted(data, run.url, steps=3))
    original, flipped = BucketStore._fetch, []

    def fetch(self, name, folder, again=False):
        original(self, name, folder, again)
        if not again and name.startswith("checkpoints/"):
            file = next(path for path in sorted(folder.rglob("d/*")) if path.is_file())
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
            flipped.append(file)

    monkeypatch.setattr(BucketStore, "_fetch", fetch)
    capsys.readouterr()
    train(wanted(data, run.url, steps=4), resume=True)
    assert flipped and "continuing after step 3" in capsys.readouterr().out
    assert not [name for name in run.names() if name.endswith("damaged.json")]


def test_the_lineage_of_states():
    def name(step: int, claim: int, file: str = "training.json") -> str:
        return f"checkpoints/{step:08d}-{claim:06d}/{file}"

    names = [name(100, 1), name(200, 1), name(100, 1, "state/a"), name(150, 2), name(160, 2, "state/a"), "run.json"]
    assert usable_states(names) == [StoredState(2, 150), StoredState(1, 100)]  # the second claim repeated the steps after 100
    assert usable_states([*names, name(150, 2, "damaged.json")]) == [StoredState(1, 200), StoredState(1, 100)]
    assert states(names)[StoredState(2, 160)] == {"state/a"}
    assert np.all([StoredState(1, 200) < StoredState(2, 100), usable_states([]) == []])
