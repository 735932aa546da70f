"""Uncertainty from the disagreement of members: the measures of arrays, and the maps that `predict` writes."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from flax import nnx
from helpers.network_package import MODULE
from helpers.prediction import read_image, run, write_case
from helpers.refusals import refused

from swinunetr_jax import SwinUNETR, SwinUNETRConfig, Task, registry, save_checkpoint
from swinunetr_jax.evaluation.pairs import find_predictions
from swinunetr_jax.inference import members, passes
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.uncertainty import (
    MEASURES,
    RunningAgreement,
    RunningUncertainty,
    entropy,
    summarize,
    uncertainty_maps,
)

CASE = "BraTS2021_00001"
TASK = Task.brats(roi=(64, 32, 32))


def members_of(segmenter):
    """Returns the members of a segmenter whose windows are not mirrored."""
    return members.members(segmenter._networks, [()], draws=segmenter.mc_dropout, seed=segmenter.seed)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


# ---- arrays


def test_the_measures_of_two_members_are_those_computed_by_hand():
    members = np.array([[[0.8, 0.2]], [[0.4, 0.6]]], np.float32)
    maps = uncertainty_maps(members, "classes")
    np.testing.assert_allclose(maps.entropy, [0.6730117], rtol=1e-6)  # of (0.6, 0.4)
    np.testing.assert_allclose(maps.mutual_information, [0.6730117 - (0.5004024 + 0.6730117) / 2], rtol=1e-5)
    np.testing.assert_allclose(maps.variance, [2 * 0.2**2], rtol=1e-6)
    maps = uncertainty_maps(members, "regions")
    np.testing.assert_allclose(maps.entropy, [[0.6730117, 0.6730117]], rtol=1e-6)
    np.testing.assert_allclose(maps.variance, [[0.04, 0.04]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["classes", "regions"])
def test_running_sums_are_the_formulas_of_all_members(kind):
    logits = np.random.default_rng(0).normal(size=(7, 5, 4, 3, 3))
    p = (softmax(logits) if kind == "classes" else 1 / (1 + np.exp(-logits))).astype(np.float32)
    mean = p.astype(np.float64).mean(0)

    def reference(p):
        return -(p * np.log(p)).sum(-1) if kind == "classes" else -p * np.log(p) - (1 - p) * np.log(1 - p)

    maps = uncertainty_maps(iter(p), kind)
    variance = p.astype(np.float64).var(0)
    np.testing.assert_allclose(maps.entropy, reference(mean), rtol=1e-5)
    np.testing.assert_allclose(
        maps.mutual_information, reference(mean) - reference(p.astype(np.float64)).mean(0), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(maps.variance, variance.sum(-1) if kind == "classes" else variance, rtol=1e-4, atol=1e-8)
    assert {values.dtype for values in vars(maps).values()} == {np.dtype(np.float32)}


def test_equal_members_disagree_about_nothing():
    certain = np.zeros((2, 3, 4, 2), np.float32)
    certain[..., 0] = 1
    maps = uncertainty_maps([certain, certain, certain], "classes")
    assert not any(np.any(values) for values in vars(maps).values())
    half = np.full((2, 3, 4, 2), 0.5, np.float32)
    maps = uncertainty_maps([half, half], "classes")
    np.testing.assert_allclose(maps.entropy, np.log(2), rtol=1e-6)
    assert not maps.mutual_information.any() and not maps.variance.any()
    np.testing.assert_allclose(entropy(half, "regions"), np.log(2), rtol=1e-6)
    with refused("have shape (1,), expected (2, 3, 4, 2)"):
        uncertainty_maps([half, half[0, 0, 0, :1]], "classes")
    with refused("`kind` must be one of classes, regions"):
        RunningUncertainty("images")
    with refused("no member was added"):
        uncertainty_maps([], "classes")
    with refused("at least 0 and at most 1, got numbers from -3 to 4"):  # logits
        uncertainty_maps([np.array([[-3.0, 4.0]])], "classes")


def test_rounding_beyond_0_and_1_has_no_effect():
    rounded = np.array([1.0000001, -1e-7], np.float32)
    assert entropy(rounded, "classes") == 0 and not entropy(rounded, "regions").any()


def test_the_agreement_is_that_of_roy_et_al():
    task = Task.classes(3)
    members = np.zeros((3, 10), np.uint8)
    members[0, :4], members[1, 2:6], members[2, :2] = 1, 1, 1  # 4, 4 and 2 voxels; 2, 2 and 0 in common
    agreement = RunningAgreement(task)
    for member in members:
        agreement.add(member)
    first, second = agreement.by_output().values()
    assert first.volume_cv == pytest.approx(np.std([4, 4, 2]) / (10 / 3))
    assert first.pairwise_dice == pytest.approx(np.mean([2 * 2 / 8, 2 * 2 / 6, 0]))
    assert first.iou == 0 and (second.volume_cv, second.pairwise_dice, second.iou) == (None, None, None)
    equal = RunningAgreement(task)
    for _ in range(2):
        equal.add(members[0])
    assert vars(equal.by_output()[task.outputs[1].name]) == {"volume_cv": 0, "pairwise_dice": 1, "iou": 1}
    maps = uncertainty_maps(softmax(np.random.default_rng(0).normal(size=(3, 10, 3))), "classes")
    summary = summarize(maps, agreement, members[0])
    assert summary["foreground"]["entropy"] == pytest.approx(maps.entropy[:4].mean(), abs=1e-6)
    assert summary["outputs"][task.outputs[1].name]["variance"] == pytest.approx(maps.variance[:4].mean(), abs=1e-6)
    assert summary["outputs"][task.outputs[2].name]["entropy"] is None


# ---- scans


class Noisy(nnx.Module):
    """Logits of the first channel; a key adds Gaussian noise of a known variance."""

    def __init__(self, in_channels, out_channels, *, rngs):
        self.scale = nnx.Param(jnp.ones(out_channels))

    def __call__(self, x, key=None, train=False):
        logits = x[..., :1] * self.scale[...]
        return logits if key is None else logits + 0.5 * jax.random.normal(key, logits.shape)


class Deterministic(Noisy):
    def __call__(self, x, key=None, train=False):
        return x[..., :1] * self.scale[...]


@pytest.fixture
def networks(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    return [registry.register(kind.__name__.lower(), kind).config(1, 2) for kind in (Noisy, Deterministic)]


def segmenter(configs, scales=(1.0,), **options):
    models = [config.make(nnx.Rngs(0)) for config in configs]
    for model, scale in zip(models, scales):
        model.scale[...] = jnp.array([0.0, scale])
    task = Task.classes(2, intensity="none")
    return Segmenter(models, task, configs=configs, roi=(64, 32, 32), overlap=0.0, blend="constant", **options)


def test_the_maps_of_an_ensemble_are_those_of_its_members(networks):
    _, plain = networks
    both = segmenter([plain, plain], (1.0, -2.0), uncertainty=True)
    x = np.random.default_rng(0).normal(size=(70, 40, 33, 1)).astype(np.float32)
    scan = both.passes(x, None, both.task)
    labels, maps, result = passes.segment_with_uncertainty(scan, members_of(both), average=None, probabilities=True)
    logits = [np.concatenate([np.zeros_like(x), scale * x], -1) for scale in (1.0, -2.0)]
    expected = uncertainty_maps([softmax(array) for array in logits], "classes")
    for measure in MEASURES:
        np.testing.assert_allclose(getattr(result.maps, measure), getattr(expected, measure), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(maps, softmax((logits[0] + logits[1]) / 2), atol=1e-6)
    np.testing.assert_array_equal(labels, both.run(x)[0])
    assert result.summary["members"] == 2 and list(result.summary["outputs"]) == ["class 1"]
    assert result.summary["outputs"]["class 1"]["pairwise_dice"] == 0  # one member labels what the other one does not
    # A crop has no uncertainty outside of its box.
    x[:20] = 0
    cropped = segmenter([plain, plain], (1.0, -2.0), uncertainty=True, crop=True)
    scan = cropped.passes(x, None, cropped.task)
    assert scan.coverage.box[0] == slice(20, 70)
    _, _, result = passes.segment_with_uncertainty(scan, members_of(cropped), average=None, probabilities=False)
    assert not any(np.any(values[:20]) for values in vars(result.maps).values()) and result.maps.variance[20:].any()


def test_draws_have_the_mean_and_the_variance_of_the_noise(networks):
    noisy, _ = networks
    draws = segmenter([noisy], mc_dropout=20, seed=3)
    x = np.zeros((64, 64, 32, 1), np.float32)
    scan = draws.passes(x, None, draws.task)
    members = members_of(draws)
    running = RunningUncertainty("classes")
    for member in members:
        maps = scan.new_probabilities()
        for piece in scan.planes(member):
            piece.write(jax.nn.softmax(piece.array), maps)
        running.add(maps)
    # The difference of both logits is normal with the variance 2 · 0.5² = 0.5. E[sigmoid] is 1/2; the variance of sigmoid is 0.02553
    # by quadrature. The map's variance is the sum over both classes and has the factor (n - 1) / n.
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    values = 1 / (1 + np.exp(-np.sqrt(0.5) * points))
    variance = np.sum(weights * (values - 0.5) ** 2) / weights.sum()
    voxels = x.size
    assert abs(running.mean[..., 1].mean() - 0.5) < 4 * np.sqrt(variance / (20 * voxels))
    assert running.maps().variance.mean() == pytest.approx(2 * variance * 19 / 20, rel=0.01)
    windows = running.mean[:, :32, :32, 1], running.mean[:, 32:, :32, 1]
    assert not np.allclose(*windows)  # each window has random numbers of its own


def test_members_that_cannot_disagree_are_refused(networks):
    noisy, plain = networks
    with refused("at least two members: give several networks, --mirror"):
        segmenter([plain], uncertainty=True)
    with refused("at least two members"):
        segmenter([noisy], mc_dropout=1)
    with refused("the network deterministic does not use the key"):
        segmenter([plain], mc_dropout=10)
    with refused("`mc_dropout` must be at least 0"):
        segmenter([noisy], mc_dropout=-1)
    config = SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1))
    with refused("trained without dropout", "--drop-rate 0.1"):
        Segmenter([SwinUNETR(config, rngs=nnx.Rngs(0))], Task.classes(2), mc_dropout=2)
    Segmenter([plain.make(nnx.Rngs(0))] * 2, Task.classes(2), configs=[plain] * 2, uncertainty=True)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Returns checkpoints of two networks with dropout."""
    names = {"__name__": "tiny_networks"}
    monkeypatch.setitem(__import__("sys").modules, "tiny_networks", type(nnx)("tiny_networks"))
    exec(MODULE, names)
    monkeypatch.setattr(registry, "_registered", {})
    config = registry.register("tiny", names["Tiny"]).config(4, 3, width=16, drop_rate=0.3)
    for seed in (0, 1):
        save_checkpoint(tmp_path / f"net{seed}", config.make(nnx.Rngs(seed)), config=config, task=TASK)
    return [tmp_path / "net0", tmp_path / "net1"]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.nii.gz"))}


def test_the_command_writes_maps_on_the_scans_grid(tiny, tmp_path, capsys):
    affine = np.array([[0, 1.5, 0, 4], [-1, 0, 0, 5], [0, 0, 2, 6], [0, 0, 0, 1.0]])
    case = write_case(tmp_path, affine=affine)
    command = ("predict", "-i", case, "--crop", "--overlap", "0", "--spacing", "1.2", "1.2", "2", "-m")
    assert run(*command, tiny[0], "-o", tmp_path / "plain") == 0
    for out in ("a", "b"):
        assert run(*command, tiny[0], "-o", tmp_path / out, "--mc-dropout", "3", "--seed", "7") == 0
    assert "3 members, whose mean Dice among each other is: TC 0." in capsys.readouterr().out
    names = [f"{CASE}{ending}.nii.gz" for ending in ("", "_entropy", "_mutual_information", "_variance")]
    assert digests(tmp_path / "a") == digests(tmp_path / "b") and list(digests(tmp_path / "a")) == names
    assert digests(tmp_path / "a")[names[0]] == digests(tmp_path / "plain")[names[0]]  # the label map is the same
    for name in names[1:]:
        array, image = read_image(tmp_path / "a" / name)
        assert array.shape == (50, 40, 34, 3) and array.dtype == np.float32 and np.isfinite(array).all() and array.max() > 0
        np.testing.assert_array_equal(image.affine, nib.load(next(case.glob("*flair*"))).affine)
    assert run(*command, tiny[0], "-o", tmp_path / "c", "--mc-dropout", "3", "--seed", "8") == 0
    assert digests(tmp_path / "c")[names[3]] != digests(tmp_path / "a")[names[3]]
    record = json.loads((tmp_path / "a/predict.json").read_text())
    numbers = record["cases"][CASE]["uncertainty"]
    assert numbers["members"] == 3 and numbers["outputs"].keys() == {"TC", "WT", "ET"}
    assert 0 < numbers["outputs"]["WT"]["pairwise_dice"] < 1 and numbers["outputs"]["WT"]["volume_cv"] > 0
    assert record["settings"]["uncertainty"] == {"mc_dropout": 3, "seed": 7, "batch": 1}
    assert run(*command, tiny[0], "-o", tmp_path / "a", "--mc-dropout", "3", "--seed", "7") == 0
    assert "done already, skipped" in capsys.readouterr().out
    assert [*find_predictions(tmp_path / "a").cases] == [CASE]
    assert run(*command, tiny[0], "-o", tmp_path / "d", "--drop-rate", "0.1") == 2
    assert "--drop-rate is for draws of dropout" in capsys.readouterr().err
    assert run(*command, tiny[0], "-o", tmp_path / "d", "--seed", "7") == 2
    assert "--seed is for draws of dropout" in capsys.readouterr().err
    assert run(*command, tiny[0], "-o", tmp_path / "d", "--drop-rate", "0.1", "--mc-dropout", "3") == 2
    assert "drop_rate are for a Swin UNETR" in capsys.readouterr().err


def test_the_command_compares_networks_and_mirrored_windows(tiny, tmp_path, capsys):
    case = write_case(tmp_path)
    for out, more in (("plain", ()), ("maps", ("--uncertainty",))):
        assert run("predict", "-i", case, "-o", tmp_path / out, "-m", *tiny, "--mirror", *more) == 0
    assert "16 members" in capsys.readouterr().out
    first, second = (read_image(tmp_path / out / f"{CASE}.nii.gz")[0] for out in ("plain", "maps"))
    assert (first != second).mean() < 1e-4  # the same averages, rounded in another order
    case_record = json.loads((tmp_path / "maps/predict.json").read_text())["cases"][CASE]
    assert set(case_record["outputs"]) == {"labels", *MEASURES}
    assert run("predict", "-i", case, "-o", tmp_path / "none", "-m", tiny[0], "--uncertainty") == 2
    assert "at least two members" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_a_map_that_cannot_be_written_leaves_nothing_behind(tiny, tmp_path, monkeypatch, capsys):
    from swinunetr_jax.inference import batch

    write = batch.write_volume

    def fail(path, array, *rest):
        if array.ndim == 4:
            raise batch.InputError(f"{path}: cannot be written (no space).")
        return write(path, array, *rest)

    monkeypatch.setattr(batch, "write_volume", fail)
    case = write_case(tmp_path)
    assert run("predict", "-i", case, "-o", tmp_path / "out", "-m", *tiny, "--uncertainty") == 1
    assert f"{CASE}_entropy.nii.gz: cannot be written (no space)" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predict.json"]


def test_a_rate_is_given_to_a_swin_unetr(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("swinunetr_jax.inference.batch.predict_cases", lambda segmenter, *_, **__: seen.append(segmenter) or [])
    config = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=12, depths=(1, 1, 1, 1))
    save_checkpoint(tmp_path / "net", SwinUNETR(config, rngs=nnx.Rngs(0)), task=TASK)
    command = ("predict", "-i", write_case(tmp_path), "-o", tmp_path / "out", "-m", tmp_path / "net", "--mc-dropout", "2")
    assert run(*command) == 2 and not seen
    assert run(*command, "--drop-rate", "0.2") == 0
    assert seen[0].mc_dropout == 2 and len(members_of(seen[0])) == 2
