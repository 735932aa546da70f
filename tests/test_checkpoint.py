"""Our checkpoint folder: what is written comes back, damage of any file is told and never read, and a failed save leaves no trace."""

import errno
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.files import digest_of_json
from swinunetr_jax.model.unetr import SwinUNETR
from swinunetr_jax.task import Task
from swinunetr_jax.weights import arrays
from swinunetr_jax.weights.checkpoint import DESCRIPTION, PARAMS, is_checkpoint, read_checkpoint, write_checkpoint
from swinunetr_jax.weights.load import load_checkpoint, open_checkpoint, save_checkpoint, save_params
from swinunetr_jax.weights.params import build, digest, digest_all, flatten, shapes

CONFIG = SwinUNETRConfig(
    in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2, window_size=3, norm_name="batch"
)
TASK = Task.classes(2, channels=("CT",), intensity="window", window=(-175.0, 250.0), roi=(96, 64))


def random_params(config: SwinUNETRConfig = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(1 << 20, size=leaf.shape).astype(leaf.dtype)
        if leaf.dtype == np.int32
        else rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)
        for name, leaf in shapes(config).items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A checkpoint that tests copy and never change."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint"
    write_checkpoint(path, CONFIG, random_params(), TASK)
    return path


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def same(got, want):
    assert {name: digest(array) for name, array in got.items()} == {name: digest(array) for name, array in want.items()}


def refused(path: Path, options=None) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(path, **(options or {}))
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 700 and message.endswith(".")
    return message


def files(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))


# ---- what is written comes back


def test_round_trip(whole):
    stored = read_checkpoint(whole)
    assert stored.config == CONFIG and stored.task == TASK
    same(stored.params, random_params())
    assert {"count", "mean", "var"} <= {name.rsplit(".")[-1] for name in stored.params}
    opened = open_checkpoint(whole)
    assert opened.config == CONFIG and opened.task == TASK
    same(opened.params, random_params())
    assert opened.digest == digest_all({name: digest(array) for name, array in random_params().items()})
    assert list(opened.params) == list(shapes(CONFIG)) and sorted(opened.report.read) == sorted(opened.params)
    assert not opened.report.initialized and not opened.report.adapted and not opened.report.ignored


def test_a_model_comes_back(tmp_path):
    config = CONFIG.replace(norm_name=("group", {"num_groups": 3}), window_size=(3, 2))
    model = SwinUNETR(config, rngs=nnx.Rngs(7))
    save_checkpoint(tmp_path / "a" / "b", model)  # folders on the way are made
    back = load_checkpoint(tmp_path / "a" / "b")
    assert back.config == config
    same(flatten(back), flatten(model))
    assert open_checkpoint(tmp_path / "a" / "b").task is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_small_parameter_types(tmp_path, dtype):
    config = CONFIG.replace(param_dtype=dtype, use_v2=True)
    params = random_params(config)
    write_checkpoint(tmp_path / "a", config, params)
    opened = open_checkpoint(tmp_path / "a")
    assert opened.config == config and opened.params["out.kernel"].dtype == dtype
    assert opened.params["encoder1.norm1.mean"].dtype == np.float32
    same(opened.params, params)
    assert build(config, opened.params).out.kernel.dtype == dtype
    wide = open_checkpoint(tmp_path / "a", param_dtype="float32").params["out.kernel"]
    assert np.array_equal(wide, params["out.kernel"].astype(np.float32))


def test_memory_layout_does_not_matter(tmp_path, whole):
    write_checkpoint(tmp_path / "a", CONFIG, {n: jnp.asarray(a) for n, a in random_params().items()}, TASK)
    write_checkpoint(tmp_path / "b", CONFIG, {n: np.asarray(a, order="F") for n, a in random_params().items()}, TASK)
    for name in "ab":
        same(read_checkpoint(tmp_path / name).params, random_params())
        texts = [json.loads((path / DESCRIPTION).read_text()) for path in (tmp_path / name, whole)]
        assert texts[0]["digests"] == texts[1]["digests"]


def test_a_run_serves_as_its_best(copy, tmp_path):
    (tmp_path / "run").mkdir()
    copy.rename(tmp_path / "run" / "best")
    with pytest.raises(InputError, match="run is not a checkpoint"):
        read_checkpoint(tmp_path / "run")
    same(open_checkpoint(tmp_path / "run").params, random_params())
    (tmp_path / "run" / "best" / PARAMS / "_METADATA").unlink()
    with pytest.raises(InputError, match="run/best is damaged"):
        open_checkpoint(tmp_path / "run")


def unfinished_run(run: Path, whole: Path, *steps: int) -> Path:
    """A run with saved states and no validation yet."""
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"recipe": {}, "steps": 240}))
    for step in steps:
        shutil.copytree(whole, run / "checkpoints" / f"{step:08d}")
    return run


@pytest.mark.fault("5.4")
def test_a_run_before_its_first_validation_serves_as_its_newest_state_with_a_sentence(whole, tmp_path, capsys):
    run = unfinished_run(tmp_path / "run", whole, 20, 40)
    write_checkpoint(run / "checkpoints" / "00000040", CONFIG, random_params(seed=1), TASK, overwrite=True)
    (run / "checkpoints" / ".00000060.tmp").mkdir()
    same(open_checkpoint(run).params, random_params(seed=1))
    said = capsys.readouterr().err
    assert (
        f"warning: {run} is a training run that no validation has looked at yet" in said and "of step 40 of 240, is used" in said
    )
    assert said.count("\n") == 1
    shutil.copytree(whole, run / "best")
    same(open_checkpoint(run).params, random_params())
    assert not capsys.readouterr().err  # the usual case


@pytest.mark.fault("5.4")
def test_a_run_without_any_network_says_what_it_is(whole, tmp_path):
    run = unfinished_run(tmp_path / "run", whole)
    assert "is a training run that has not saved a network yet: continue it with" in refused(run)
    (run / "run.json").write_text("[]")
    assert "run.json" in refused(run)
    (run / "run.json").unlink()
    assert "is not a checkpoint" in refused(run)


def test_a_moved_or_linked_checkpoint_is_the_same(copy, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    copy.rename(tmp_path / "elsewhere" / "x")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "x")
    same(read_checkpoint(tmp_path / "link").params, random_params())
    write_checkpoint(tmp_path / "link", CONFIG, random_params(seed=1), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    same(read_checkpoint(tmp_path / "elsewhere" / "x").params, random_params(seed=1))
    assert files(tmp_path / "elsewhere")[0] == "x" and len(list((tmp_path / "elsewhere").iterdir())) == 1


# ---- names that are taken


def test_an_existing_path_is_kept(copy, tmp_path):
    before = files(copy)
    with pytest.raises(InputError, match="exists already, expected a free name: choose another or ask for it with `overwrite`"):
        write_checkpoint(copy, CONFIG, random_params(seed=1))
    assert files(copy) == before
    same(read_checkpoint(copy).params, random_params())

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for name in ("mine", "file"):  # never another's, whatever was asked for
        for overwrite in (False, True):
            with pytest.raises(InputError, match="exists already and is not a checkpoint"):
                write_checkpoint(tmp_path / name, CONFIG, random_params(), overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work" and (tmp_path / "file").read_text() == "a file"


def test_overwrite_replaces(copy, tmp_path):
    (copy / "notes.txt").write_text("mine")
    (copy / "params_backup").mkdir()
    for seed in (1, 2):
        write_checkpoint(
            copy, CONFIG.replace(out_channels=3), random_params(CONFIG.replace(out_channels=3), seed), overwrite=True
        )
        stored = read_checkpoint(copy)
        assert stored.config.out_channels == 3 and stored.task is None
        same(stored.params, random_params(CONFIG.replace(out_channels=3), seed))
        names = sorted(path.name for path in copy.iterdir())
        assert names[:2] == [DESCRIPTION, "notes.txt"] and names[3:] == ["params_backup"] and names[2].startswith("params-")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_damaged_checkpoint_can_be_overwritten(copy):
    (copy / DESCRIPTION).write_text("damaged")
    shutil.rmtree(copy / PARAMS)
    write_checkpoint(copy, CONFIG, random_params(seed=1), overwrite=True)
    same(read_checkpoint(copy).params, random_params(seed=1))


# ---- failures while writing


@pytest.fixture(params=["nothing", "checkpoint"])
def target(request, tmp_path, whole):
    """A free name, or a checkpoint to be overwritten; either must be as it was after a failure."""
    path = tmp_path / "out" / "checkpoint"
    path.parent.mkdir()
    if request.param == "checkpoint":
        shutil.copytree(whole, path)
    before = files(tmp_path)
    yield path
    assert files(tmp_path) == before
    if request.param == "checkpoint":
        same(read_checkpoint(path).params, random_params())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (
            ValueError("RESOURCE_EXHAUSTED: Error writing\n  lots\n of lines\n" + 80 * "text " + "end"),
            "ValueError RESOURCE_EXHAUSTED:",
        ),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_save_that_fails_leaves_nothing(target, monkeypatch, error, reason):
    def save(self, path, tree):
        Path(path).mkdir(parents=True)
        (Path(path) / "half").write_text("half")
        raise error

    monkeypatch.setattr(ocp.Checkpointer, "save", save)
    with pytest.raises(InputError) as caught:
        save_params(target, CONFIG, random_params(seed=1), overwrite=True)
    message = str(caught.value)
    assert message.startswith(f"{target} cannot be written ({reason}") and "\n" not in message and len(message) < 450
    assert message.endswith("): check the folder and its free space.")


@pytest.mark.parametrize("step", ["rename", "replace", "fsync"])
def test_a_file_system_that_fails_leaves_nothing(target, monkeypatch, step):
    real = getattr(os, step)

    def fail(first, *args, **options):
        if step == "fsync" or str(args[0]).endswith((target.name, DESCRIPTION)) or PARAMS in Path(args[0]).name:
            raise OSError(errno.EIO, "Input/output error")
        return real(first, *args, **options)

    monkeypatch.setattr(os, step, fail)
    if step == "replace" and not target.exists():
        return  # nothing is replaced there
    with pytest.raises(InputError, match=r"cannot be written \(Input/output error\)"):
        write_checkpoint(target, CONFIG, random_params(seed=1), overwrite=True)


def test_an_interrupt_leaves_nothing(target, monkeypatch):
    def save(self, path, tree):
        Path(path).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(ocp.Checkpointer, "save", save)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(target, CONFIG, random_params(seed=1), overwrite=True)


def test_a_kill_before_the_last_step_leaves_the_old_one(copy, monkeypatch):
    """Whatever moment a process ends at, the name holds a whole checkpoint: here it ends right before the description is replaced."""

    class Killed(BaseException):
        pass

    real = os.replace

    def kill(source, target, *args, **options):
        if Path(target).name == DESCRIPTION:
            raise Killed
        real(source, target, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(Killed):
            write_checkpoint(copy, CONFIG, random_params(seed=1), overwrite=True)
    same(read_checkpoint(copy).params, random_params())
    write_checkpoint(copy, CONFIG, random_params(seed=2), overwrite=True)
    same(read_checkpoint(copy).params, random_params(seed=2))
    assert len(list(copy.iterdir())) == 2  # what the killed one left is gone


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a", Path("/proc/no such folder/a"), tmp_path / ("long" * 100)):
        with pytest.raises(InputError) as caught:
            write_checkpoint(path, CONFIG, random_params())
        message = str(caught.value)
        assert message.startswith(f"{path} cannot be written (") and "\n" not in message
    assert files(tmp_path) == ["file"]


def test_weights_that_are_not_written(tmp_path):
    params = random_params()
    for value in (np.nan, np.inf):
        params["out.bias"][1] = params["encoder1.norm1.var"][0] = value
        with pytest.raises(
            InputError, match=r"^the weights hold NaN or infinite values, nothing was written: encoder1.*var, out.bias.$"
        ):
            write_checkpoint(tmp_path / "a", CONFIG, params)
    del params["out.bias"]
    with pytest.raises(
        InputError, match=r"not those of the configuration, nothing was written:\n  out.bias: got nothing, expected \(2,\)$"
    ):
        write_checkpoint(tmp_path / "a", CONFIG, params)
    assert files(tmp_path) == []


# ---- damage


def test_every_file_with_a_flipped_bit(copy):
    rng = np.random.default_rng(0)
    names = [name for name in files(copy) if (copy / name).is_file()]
    assert len(names) > 5 and DESCRIPTION in names
    for name in names:
        content = (copy / name).read_bytes()
        for place in {0, len(content) - 1, *rng.integers(len(content), size=6 if name != DESCRIPTION else 200)}:
            damaged = bytearray(content)
            damaged[place] ^= 1 << rng.integers(8)
            (copy / name).write_bytes(damaged)
            assert f"{copy}/{DESCRIPTION} is damaged" in refused(copy) if name == DESCRIPTION else name in refused(copy)
        (copy / name).write_bytes(content)
    same(read_checkpoint(copy).params, random_params())


def test_every_file_cut_emptied_or_deleted(copy):
    for name in [name for name in files(copy) if (copy / name).is_file()]:
        content = (copy / name).read_bytes()
        for keep in (len(content) - 1, len(content) // 2, 0):
            (copy / name).write_bytes(content[:keep])
            assert name in refused(copy)
        (copy / name).unlink()
        message = refused(copy)
        assert "is not a checkpoint, it has no checkpoint.json" in message if name == DESCRIPTION else name in message
        (copy / name).write_bytes(content)
    same(read_checkpoint(copy).params, random_params())


def test_folders_deleted(copy):
    shutil.rmtree(copy / PARAMS / "ocdbt.process_0")
    assert f"{PARAMS}/ocdbt.process_0/" in refused(copy)
    shutil.rmtree(copy / PARAMS)
    message = refused(copy)
    assert "are missing: params/" in message and " more; restore it or take another checkpoint." in message


def test_leaves_are_checked_even_where_files_are_whole(copy, monkeypatch):
    """A fault between the disk and the arrays, as of another version of Orbax."""
    real = ocp.Checkpointer.restore

    def restore(self, path):
        tree = real(self, path)
        tree["out"]["bias"] = tree["out"]["bias"].astype(np.float64)
        tree["encoder1"]["conv1"]["kernel"] = -tree["encoder1"]["conv1"]["kernel"]
        return tree

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    assert "are missing: encoder1.conv1.kernel, out.bias; restore" in refused(copy)


def test_orbax_that_fails(copy, monkeypatch):
    def restore(self, path):
        raise ValueError("DATA_LOSS: Error\nopening\n" + "text " * 100)

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    assert "cannot be read (ValueError DATA_LOSS: Error opening text text" in refused(copy)


def test_files_that_do_not_belong_do_not_matter(copy):
    (copy / PARAMS / ".DS_Store").write_bytes(b"x")
    (copy / "README.txt").write_text("notes")
    (copy / "params-of-a-killed-run").mkdir()
    same(read_checkpoint(copy).params, random_params())


@pytest.mark.parametrize("kind", ["empty", "foreign", "list", "number", "nothing", "binary", "folder", "missing"])
def test_what_is_no_checkpoint(tmp_path, kind):
    path = tmp_path / "x"
    if kind != "missing":
        path.mkdir()
    content = {"foreign": '{"format": 1, "config": {}}', "list": "[]", "number": "1", "nothing": ""}.get(kind)
    if content is not None:
        (path / DESCRIPTION).write_text(content)
    if kind == "binary":
        (path / DESCRIPTION).write_bytes(bytes(range(256)))
    if kind == "folder":
        (path / DESCRIPTION).mkdir()
    message = refused(path)
    if kind == "empty":
        assert message == f"{path} is not a checkpoint, it has no checkpoint.json: check which folder was given."
    assert is_checkpoint(path) == (kind not in ("empty", "folder", "missing"))


def rewritten(path: Path, **changes) -> None:
    """The description with other values and a right digest of itself: not damage but another writer."""
    values = json.loads((path / DESCRIPTION).read_text()) | changes
    del values["digest"]
    values = {name: value for name, value in values.items() if value != "deleted"}
    values["digest"] = digest_of_json(values)
    (path / DESCRIPTION).write_text(json.dumps(values))


def test_a_newer_format(copy):
    rewritten(copy, format=2)
    assert refused(copy).endswith("has format 2, this version reads format 1: use a newer swinunetr_jax.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": CONFIG.to_dict() | {"colour": 3}}, "unknown configuration field 'colour'"),
        ({"config": "deleted"}, "has unexpected content (object missing required field `config`)"),
        ({"config": None}, "has unexpected content (expected `object`, got `null` - at `$.config`)"),
        ({"config": CONFIG.to_dict() | {"depths": [10**9, 1, 1, 1]}}, "needs more tensors than"),
        ({"config": CONFIG.to_dict() | {"mlp_ratio": 1e100}}, "far more than the params beside it can hold"),
        ({"config": CONFIG.to_dict() | {"in_channels": [1]}}, "`in_channels` must be a positive integer"),
        ({"task": {"kind": "magic", "outputs": []}}, "`kind` must be"),
        ({"digests": []}, "has unexpected content"),
        ({"digests": {}}, "needs more tensors than the 0 that have digests"),
        ({"digests": dict.fromkeys("abcd", "0")}, "these differ from their digests or are missing: "),
        ({"params": "../elsewhere"}, "does not name the weights beside it"),
        ({"params": "params_backup"}, "does not name the weights beside it"),
        ({"params": "params/../.."}, "does not name the weights beside it"),
        ({"params": 3}, "has unexpected content (expected `str`, got `int` - at `$.params`)"),
        ({"files": "deleted"}, "does not name the weights beside it"),
        ({"files": {"../secret": "0"}}, "are missing: ../secret;"),
    ],
)
def test_descriptions_by_another_hand(copy, changes, message):
    rewritten(copy, **changes)
    assert message in refused(copy)


def test_a_configuration_of_other_weights(copy):
    rewritten(copy, config=CONFIG.replace(out_channels=3).to_dict())
    with pytest.raises(InputError) as caught:
        open_checkpoint(copy)
    assert str(caught.value) == (
        f"{copy} does not hold the weights of its own configuration:\n  out.bias: got (2,), expected (3,)\n"
        "  out.kernel: got (1, 1, 12, 2), expected (1, 1, 12, 3)"
    )


@pytest.mark.fault("3.6")
def test_shapes_are_compared_before_any_array_is_read(copy, monkeypatch):
    """A few kilobytes on the disk can stand for gigabytes of equal numbers."""

    def restore(self, path):
        raise AssertionError("arrays were read")

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    rewritten(copy, config=CONFIG.replace(out_channels=3).to_dict())
    with pytest.raises(InputError, match=r"out.bias: got \(2,\), expected \(3,\)"):
        read_checkpoint(copy)
    shutil.rmtree(copy)
    zeros = {name: np.zeros_like(array) for name, array in random_params().items()}
    write_checkpoint(copy, CONFIG, zeros)
    on_disk = sum(file.stat().st_size for file in (copy / PARAMS).rglob("*") if file.is_file())
    assert on_disk < sum(array.nbytes for array in zeros.values()) / 64
    monkeypatch.setattr("swinunetr_jax.weights.checkpoint._SMALL_NETWORK_BYTES", 0)
    assert "far more than the params beside it can hold" in refused(copy)


@pytest.mark.fault("3.6")
def test_leaves_that_are_too_many_are_not_read(tmp_path):
    arrays.write_arrays(tmp_path / "a", {"a.b": np.zeros((3, 4)), "c": np.int32(1)})
    assert arrays.array_shapes(tmp_path / "a") == {"a.b": (3, 4), "c": ()}
    assert list(arrays.read_arrays(tmp_path / "a", {"a.b": (3, 4), "c": ()})) == ["a.b", "c"]
    for shapes_wanted in ({"a.b": (3, 4)}, {"a.b": (3, 4), "c": (), "d": (1,)}, {"a.b": (4, 3), "c": ()}):
        with pytest.raises(ValueError, match=r"has the shape .*, expected"):
            arrays.read_arrays(tmp_path / "a", shapes_wanted)


def test_fields_that_contradict(whole):
    assert "was made with `window_size` [3, 3], and [7, 7] was given: leave it out." in refused(whole, {"window_size": 7})
    assert open_checkpoint(whole, window_size=3, dtype="bfloat16").config == CONFIG.replace(dtype="bfloat16")
