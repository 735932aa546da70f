"""Every damage of a checkpoint folder is noticed, and descriptions of other programs are refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.checkpoint_folder import CONFIG, assert_same_arrays, file_names, refusal
from helpers.weight_states import random_params

from swinunetr_jax.errors import InputError
from swinunetr_jax.files import digest_of_json
from swinunetr_jax.weights import arrays
from swinunetr_jax.weights.checkpoint import DESCRIPTION, PARAMS, is_checkpoint, read_checkpoint, write_checkpoint
from swinunetr_jax.weights.load import open_checkpoint

pytest_plugins = ["helpers.fixtures"]

# Damage


def test_a_flipped_bit_is_noticed_in_every_file(checkpoint):
    rng = np.random.default_rng(0)
    names = [name for name in file_names(checkpoint) if (checkpoint / name).is_file()]
    assert len(names) > 5 and DESCRIPTION in names
    for name in names:
        content = (checkpoint / name).read_bytes()
        for position in {0, len(content) - 1, *rng.integers(len(content), size=6 if name != DESCRIPTION else 200)}:
            damaged = bytearray(content)
            damaged[position] ^= 1 << rng.integers(8)
            (checkpoint / name).write_bytes(damaged)
            assert (f"{checkpoint}/{DESCRIPTION} is damaged" if name == DESCRIPTION else name) in refusal(checkpoint)
        (checkpoint / name).write_bytes(content)
    assert_same_arrays(read_checkpoint(checkpoint).params, random_params(CONFIG))


def test_a_truncated_or_missing_file_is_noticed(checkpoint):
    for name in [name for name in file_names(checkpoint) if (checkpoint / name).is_file()]:
        content = (checkpoint / name).read_bytes()
        for keep in (len(content) - 1, len(content) // 2, 0):
            (checkpoint / name).write_bytes(content[:keep])
            assert name in refusal(checkpoint)
        (checkpoint / name).unlink()
        message = refusal(checkpoint)
        assert ("is not a checkpoint, because it has no checkpoint.json" if name == DESCRIPTION else name) in message
        (checkpoint / name).write_bytes(content)
    assert_same_arrays(read_checkpoint(checkpoint).params, random_params(CONFIG))


def test_a_missing_folder_is_noticed(checkpoint):
    shutil.rmtree(checkpoint / PARAMS / "ocdbt.process_0")
    assert f"{PARAMS}/ocdbt.process_0/" in refusal(checkpoint)
    shutil.rmtree(checkpoint / PARAMS)
    message = refusal(checkpoint)
    assert "are missing: params/" in message and " more; restore it or take another checkpoint." in message


def test_arrays_are_compared_with_digests_after_reading(checkpoint, monkeypatch):
    """Another version of Orbax, for example, could read undamaged files as other arrays."""
    original = ocp.Checkpointer.restore

    def restore(self, path):
        tree = original(self, path)
        tree["out"]["bias"] = tree["out"]["bias"].astype(np.float64)
        tree["encoder1"]["conv1"]["kernel"] = -tree["encoder1"]["conv1"]["kernel"]
        return tree

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    assert "are missing: encoder1.conv1.kernel, out.bias; restore" in refusal(checkpoint)


def test_an_error_of_orbax_is_reported_in_one_sentence(checkpoint, monkeypatch):
    def restore(self, path):
        raise ValueError("DATA_LOSS: Error\nopening\n" + "text " * 100)

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    assert "cannot be read (ValueError DATA_LOSS: Error opening text text" in refusal(checkpoint)


def test_other_files_in_the_folder_are_ignored(checkpoint):
    (checkpoint / PARAMS / ".DS_Store").write_bytes(b"x")
    (checkpoint / "README.txt").write_text("notes")
    (checkpoint / "params-of-a-killed-run").mkdir()
    assert_same_arrays(read_checkpoint(checkpoint).params, random_params(CONFIG))


# Descriptions


@pytest.mark.parametrize("kind", ["empty", "foreign", "list", "number", "nothing", "binary", "folder", "missing"])
def test_a_path_that_is_not_a_checkpoint_is_refused(tmp_path, kind):
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
    message = refusal(path)
    if kind == "empty":
        assert message == f"{path} is not a checkpoint, because it has no checkpoint.json: check which folder was given."
    assert is_checkpoint(path) == (kind not in ("empty", "folder", "missing"))


def rewrite(path: Path, **changes) -> None:
    """Changes values of the description and updates its digest.

    The description then looks as if another program had written it, and not damaged.
    """
    values = json.loads((path / DESCRIPTION).read_text()) | changes
    del values["digest"]
    values = {name: value for name, value in values.items() if value != "deleted"}
    values["digest"] = digest_of_json(values)
    (path / DESCRIPTION).write_text(json.dumps(values))


def test_another_format_is_refused(checkpoint):
    rewrite(checkpoint, format=2)
    assert refusal(checkpoint).endswith("has format 2, this version reads format 1: use a newer swinunetr_jax.")
    rewrite(checkpoint, format=0)
    assert refusal(checkpoint).endswith("has format 0, this version reads format 1: use the swinunetr_jax that wrote it.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": CONFIG.to_dict() | {"colour": 3}}, "unknown configuration field 'colour'"),
        ({"config": "deleted"}, "has unexpected content (object missing required field `config`)"),
        ({"config": None}, "has unexpected content (expected `object`, got `null` - at `$.config`)"),
        ({"config": CONFIG.to_dict() | {"depths": [10**9, 1, 1, 1]}}, "needs more tensors than"),
        ({"config": CONFIG.to_dict() | {"mlp_ratio": 1e100}}, "far more than its folder params can contain"),
        ({"config": CONFIG.to_dict() | {"in_channels": [1]}}, "`in_channels` must be a positive integer"),
        ({"task": {"kind": "magic", "outputs": []}}, "`kind` must be"),
        ({"digests": []}, "has unexpected content"),
        ({"digests": {}}, "needs more tensors than the 0 that have digests"),
        ({"digests": dict.fromkeys("abcd", "0")}, "these parts differ from their digests or are missing: "),
        ({"params": "../elsewhere"}, "does not name the folder of its weights"),
        ({"params": "params_backup"}, "does not name the folder of its weights"),
        ({"params": "params/../.."}, "does not name the folder of its weights"),
        ({"params": 3}, "has unexpected content (expected `str`, got `int` - at `$.params`)"),
        ({"files": "deleted"}, "does not name the folder of its weights"),
        ({"files": {"../secret": "0"}}, "are missing: ../secret;"),
    ],
)
def test_an_invalid_description_is_refused(checkpoint, changes, message):
    rewrite(checkpoint, **changes)
    assert message in refusal(checkpoint)


def test_a_description_that_is_nested_too_deeply_is_refused(checkpoint):
    """Reading JSON and writing it for its digest have different limits."""
    text = (checkpoint / DESCRIPTION).read_text().rstrip()
    for depth in (100, *range(800, 1000, 4), 10_000):
        (checkpoint / DESCRIPTION).write_text(f'{text[:-1]}, "extra": {"[" * depth}{"]" * depth}}}')
        assert f"{checkpoint}/{DESCRIPTION} is damaged" in refusal(checkpoint)


def test_a_configuration_that_does_not_fit_the_weights_is_refused(checkpoint):
    rewrite(checkpoint, config=CONFIG.replace(out_channels=3).to_dict())
    with pytest.raises(InputError) as caught:
        open_checkpoint(checkpoint)
    assert str(caught.value) == (
        f"{checkpoint} does not hold the weights of its own configuration:\n  out.bias: got (2,), expected (3,)\n"
        "  out.kernel: got (1, 1, 12, 2), expected (1, 1, 12, 3)"
    )


@pytest.mark.fault("3.6")
def test_shapes_are_compared_before_any_array_is_read(checkpoint, monkeypatch):
    """A few kilobytes on the disk can stand for gigabytes of equal numbers."""

    def restore(self, path):
        raise AssertionError("arrays were read")

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    rewrite(checkpoint, config=CONFIG.replace(out_channels=3).to_dict())
    with pytest.raises(InputError, match=r"out.bias: got \(2,\), expected \(3,\)"):
        read_checkpoint(checkpoint)
    shutil.rmtree(checkpoint)
    config = CONFIG.replace(feature_size=2 * CONFIG.feature_size)  # so that the bytes per array, which vary, matter little
    zeros = {name: np.zeros_like(array) for name, array in random_params(config).items()}
    write_checkpoint(checkpoint, config, zeros)
    on_disk = sum(file.stat().st_size for file in (checkpoint / PARAMS).rglob("*") if file.is_file())
    assert on_disk < sum(array.nbytes for array in zeros.values()) / 64
    monkeypatch.setattr("swinunetr_jax.weights.checkpoint._SMALL_NETWORK_BYTES", 0)
    assert "far more than its folder params can contain" in refusal(checkpoint)


@pytest.mark.fault("3.6")
def test_arrays_with_other_names_or_shapes_are_not_read(tmp_path):
    arrays.write_arrays(tmp_path / "a", {"a.b": np.zeros((3, 4)), "c": np.int32(1)})
    assert arrays.array_shapes(tmp_path / "a") == {"a.b": (3, 4), "c": ()}
    assert list(arrays.read_arrays(tmp_path / "a", {"a.b": (3, 4), "c": ()})) == ["a.b", "c"]
    for expected in ({"a.b": (3, 4)}, {"a.b": (3, 4), "c": (), "d": (1,)}, {"a.b": (4, 3), "c": ()}):
        with pytest.raises(ValueError, match=r"has the shape .*, expected"):
            arrays.read_arrays(tmp_path / "a", expected)
