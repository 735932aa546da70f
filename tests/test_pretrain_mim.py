"""Masked image modelling: the masks, the loss, the validation on held-out scans, and whole runs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.refusals import refused
from helpers.runner import ROOT, bytes_of
from helpers.small_network import forget, replace_swin_unetr
from helpers.training_runs import stop_after

from swinunetr_jax import Task
from swinunetr_jax.training import Augmentation, Network, Optim, Pretrain, Recipe, Validation, loop, restore, train
from swinunetr_jax.training.description import read_description
from swinunetr_jax.training.log import read_rows
from swinunetr_jax.training.pretrain.masks import block_mask, block_size, mask_keys, masked_blocks
from swinunetr_jax.training.pretrain.mim import MaskedImages
from swinunetr_jax.training.recipes.pretrain import RECIPE
from swinunetr_jax.training.stop import Stopped

CROP = (32, 64, 32)


def masks(samples: list[int], *, seed: int = 0, block: int = 8, ratio: float = 0.6) -> np.ndarray:
    keys = mask_keys(seed, jnp.array(samples))
    return np.asarray(jax.vmap(lambda key: block_mask(key, CROP, block, ratio))(keys))


def test_exactly_the_share_of_blocks_is_masked_and_blocks_are_whole():
    for ratio, block in ((0.6, 8), (0.75, 16), (0.5, 4)):
        drawn = masks(list(range(20)), block=block, ratio=ratio)
        blocks = drawn.reshape(20, CROP[0] // block, block, CROP[1] // block, block, CROP[2] // block, block)
        blocks = blocks.transpose(0, 1, 3, 5, 2, 4, 6).reshape(20, -1, block**3)
        assert (blocks.all(-1) | ~blocks.any(-1)).all()
        count = np.prod(CROP) // block**3
        assert (blocks.all(-1).sum(-1) == masked_blocks(count, ratio)).all()
        assert abs(masked_blocks(count, ratio) - ratio * count) <= 0.5
    assert masked_blocks(2, 0.9) == 1 and masked_blocks(8, 0.01) == 1
    assert (block_size((96, 96, 128), None), block_size((96, 64, 96), None), block_size((96, 96, 96), 4)) == (16, 8, 4)


def test_every_block_is_masked_equally_often_and_masks_depend_on_seed_and_sample_only():
    drawn = masks(list(range(600)))
    often = drawn[:, ::8, ::8, ::8].mean(0)
    assert often.mean() == pytest.approx(0.6, abs=0.01) and often.std() == pytest.approx((0.24 / 600) ** 0.5, rel=0.25)
    np.testing.assert_array_equal(masks([7, 3]), masks([3, 7])[::-1])
    np.testing.assert_array_equal(masks([3, 7])[0], drawn[3])
    assert (masks([3], seed=1)[0] != drawn[3]).any() and len({mask.tobytes() for mask in drawn}) == 600


class Constant(nnx.Module):
    """A network that returns the same number everywhere."""

    def __init__(self, value: float):
        self.value = value

    def __call__(self, x, key=None, train=False):
        return jnp.full_like(x, self.value)


def batch(rng: np.random.Generator, count: int = 2) -> dict[str, jax.Array]:
    image = rng.normal(1, 2, (count, *CROP, 2)).astype(np.float32)
    label = np.ones((count, *CROP), np.uint8)
    label[:, :10], image[:, :10] = 0, 0
    return {"image": jnp.array(image), "label": jnp.array(label), "sample": jnp.arange(count, dtype=jnp.int32)}


def test_the_loss_counts_masked_voxels_that_show_something():
    objective = MaskedImages(Task.images(("a", "b"), roi=CROP), Pretrain(), 0)
    samples = batch(np.random.default_rng(0))
    image, content = np.asarray(samples["image"], np.float64), np.asarray(samples["label"]) > 0
    mask = np.asarray(objective.masks(samples["sample"]))
    error = [((image[n][mask[n] & content[n]] - 0.5) ** 2).mean() for n in range(2)]
    filled = []
    for n in range(2):
        visible = image[n][~mask[n] & content[n]].mean(0)
        filled.append(((image[n][mask[n] & content[n]] - visible) ** 2).mean())
    loss, metrics = objective(Constant(0.5), samples, jax.random.key(0))
    assert float(loss) == pytest.approx(np.mean(error), rel=1e-5)
    assert float(metrics["fill_mse"]) == pytest.approx(np.mean(filled), rel=1e-5)
    assert objective.numbers(float(loss), {"fill_mse": 4.0})["masked R²"] == pytest.approx(1 - np.mean(error) / 4)
    # The network does not see masked voxels, and its output counts only there.
    seen = []

    def look(x, key=None, train=False):
        seen.append(np.asarray(x))
        return x

    objective.losses(look, samples, None)  # pyright: ignore[reportArgumentType]
    assert (seen[0][mask] == 0).all() and (seen[0][~mask] == image[~mask]).all()
    empty = samples | {"label": jnp.zeros_like(samples["label"])}
    assert float(objective(Constant(0.5), empty, jax.random.key(0))[0]) == 0
    slices = objective.example(Constant(0.5), samples)
    assert list(slices) == list(objective.captions)
    np.testing.assert_array_equal(np.isnan(slices["masked"]), mask[0, :, :, 16])
    assert (np.asarray(slices["filled in"])[np.isnan(slices["masked"])] == 0.5).all()


def test_blocks_that_do_not_divide_the_crop_are_refused():
    for block, crop in ((24, CROP), (32, (32, 32, 32))):
        with refused("do not divide a crop of", "--pretrain.mask-block"):
            MaskedImages(Task.images(("a",), roi=crop), Pretrain(mask_block=block), 0)
    for ratio in (0.0, 1.0):
        with refused("`pretrain.mask_ratio` must be above 0 and below 1"):
            replace(RECIPE, pretrain=Pretrain(mask_ratio=ratio)).check()


# ---- runs


@pytest.fixture
def small(monkeypatch):
    """Replaces Swin UNETR by a small network."""
    replace_swin_unetr(monkeypatch)
    yield
    monkeypatch.undo()
    forget()


def recipe(data: Path, out: Path, **changes) -> Recipe:
    fields = {
        "data": data,
        "out": out,
        "cache": data.with_name("cache"),
        "steps": 4,
        "batch": 2,
        "folds": 2,
        "roi": (32, 32, 64),
        "network": Network(feature_size=12, depths=(1, 1, 1, 1)),
        "optim": Optim(lr=1e-2, ema=0.5),
        "augment": Augmentation(()),
        "validation": Validation(every=2),
    }
    return replace(RECIPE, **fields | changes)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    from swinunetr_jax.data.phantom.dataset import write_phantom

    folder = tmp_path_factory.mktemp("scans") / "heads"
    write_phantom(folder, cases=2, size=(48, 48, 32))
    for label in folder.rglob("*_seg.nii.gz"):
        label.unlink()
    return folder


@pytest.mark.long  # .ci/run runs it
def test_a_run_without_labels_draws_and_resumes_to_the_same_bytes(scans, tmp_path, monkeypatch, small):
    whole = tmp_path / "whole"
    best = train(recipe(scans, whole))
    monkeypatch.setattr(loop, "_draw", lambda *_: None)
    validations = [row for row in read_rows(whole) if row["kind"] == "validation"]
    assert [row["step"] for row in validations] == [2, 4] and {row["metric"] for row in validations} == {"masked MSE"}
    assert best == min(row["score"] for row in validations)
    assert all(set(row["numbers"]) == {"masked R²"} for row in validations)
    assert {row["metrics"]["fill_mse"] > 0 for row in read_rows(whole) if row["kind"] == "step"} == {True}
    assert len(read_description(whole)["cases"]["train"]) == 4  # one patient with four modalities
    checkpoint = restore.read_checkpoint(whole / "best")
    assert checkpoint.task is not None and checkpoint.task.kind == "images"
    assert (checkpoint.config.in_channels, checkpoint.config.out_channels) == (1, 1)
    report = (whole / "report.html").read_text()
    assert "<h2>Filled in</h2>" in report and "masked MSE on crops of held-out scans" in report and "Worst" not in report
    assert (whole / "filled_in.png").stat().st_size > 5000

    parts = tmp_path / "parts"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            train(recipe(scans, parts))
    train(recipe(scans, parts), resume=True)
    assert bytes_of(parts) == bytes_of(whole)


@pytest.mark.long
def test_masks_and_losses_are_the_same_on_any_number_of_devices():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    digests = json.loads(done.stdout.splitlines()[-1])
    assert len(set(digests.values())) == 1, digests


def on_devices() -> dict[str, str]:
    """Returns a digest of the masks of a batch on several numbers of devices."""
    import hashlib

    from swinunetr_jax.runtime.sharding import device_mesh
    from swinunetr_jax.runtime.strategies import JitStrategy

    objective = MaskedImages(Task.images(("a",), roi=CROP), Pretrain(), 3)
    numbers = np.arange(100, 108, dtype=np.int32)
    digests = {}
    for count in (1, 2, 8):
        strategy = JitStrategy(device_mesh(8, 1, jax.devices()[:count]))
        sharded = strategy.shard_batch({"sample": numbers})
        drawn = jax.jit(objective.masks, out_shardings=strategy.batch_sharding(4))(sharded["sample"])
        digests[str(count)] = hashlib.sha256(np.asarray(drawn).tobytes()).hexdigest()
    return digests


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    print(json.dumps(on_devices()))
