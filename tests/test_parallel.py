"""Several devices give the results of one device. The tests run in a separate process with eight CPU devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from swinunetr_jax import InputError, SwinUNETR, SwinUNETRConfig, Task
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.losses import Loss
from swinunetr_jax.model.blocks import ResBlock
from swinunetr_jax.ops import lane_blocks
from swinunetr_jax.runtime import dispatch
from swinunetr_jax.runtime.sharding import device_grid, device_mesh, process_share, sort_devices, with_mesh
from swinunetr_jax.runtime.strategies import JitStrategy, PmapStrategy
from swinunetr_jax.weights.params import build, flatten

ROOT = Path(__file__).parents[1]
DEVICES, STEPS = 8, 5
CONFIG = SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1))
ONE_DEVICE = "jit 1x1"
SOME_STRATEGIES = ("jit 2x1", "jit 1x2", "jit 2x4", "pmap 4")
ALL_STRATEGIES = ("jit 2x1", "jit 4x1", "jit 8x1", "jit 1x2", "jit 1x4", "jit 2x2", "jit 2x4", "pmap 2", "pmap 4", "pmap 8")


def in_subprocess(function: str, *args: str) -> dict:
    """Returns the result of a function of this file in a process with eight devices."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, function, *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


# ---- training


def test_five_steps_of_a_small_network_on_any_number_of_devices_equal_those_on_one():
    check_losses(in_subprocess("losses_of_a_small_network", "8", ONE_DEVICE, *SOME_STRATEGIES))


@pytest.mark.long
def test_five_steps_on_any_number_of_devices_equal_those_on_one():
    check_losses(in_subprocess("losses", "8", ONE_DEVICE, *ALL_STRATEGIES))


def check_losses(losses: dict[str, list[float]]) -> None:
    assert len(set(losses[ONE_DEVICE])) == STEPS
    for name, values in losses.items():
        np.testing.assert_allclose(values, losses[ONE_DEVICE], rtol=1e-5, err_msg=name)


def losses_of_a_small_network(batch: str, *names: str) -> dict[str, list[float]]:
    from helpers.small_network import replace_swin_unetr

    replace_swin_unetr(pytest.MonkeyPatch())
    return losses(batch, *names)


def losses(batch: str, *names: str) -> dict[str, list[float]]:
    return {name: losses_on(name, int(batch)) for name in names}


def losses_on(name: str, batch_size: int) -> list[float]:
    """Returns the losses of five steps with an average of the weights, for a strategy such as "jit 2x4" (data x spatial)."""
    from swinunetr_jax.training import step
    from swinunetr_jax.training.config import Optim

    training = step.Training(
        CONFIG, Task.classes(2), Loss(kind="dice_ce"), Optim(lr=1e-3, schedule="constant", ema=0.9), STEPS, seed=0
    )
    kind, _, sizes = name.partition(" ")
    if kind == "pmap":
        strategy = PmapStrategy(tuple(jax.devices()[: int(sizes)]))
    else:
        data, spatial = map(int, sizes.split("x"))
        strategy = JitStrategy(device_mesh(batch_size, spatial, jax.devices()[: data * spatial]))
        assert strategy.mesh.devices.shape == (data, spatial)
    state, run = strategy.replicate(training.init(training.random_weights())), training.compile(strategy)
    result = []
    for index in range(STEPS):
        rng = np.random.default_rng(index)
        label = (rng.random((batch_size, 64, 32, 32)) < 0.3).astype(np.uint8)
        image = (rng.normal(size=(*label.shape, 1)) + label[..., None]).astype(np.float32)
        samples = np.arange(index * batch_size, (index + 1) * batch_size, dtype=np.int32)
        batch = strategy.shard_batch({"image": image, "label": label, "sample": samples})
        assert len(batch["image"].sharding.device_set) == strategy.size
        state, metrics = run(state, batch, strategy.stop_flags(index == 3))
        metrics = strategy.unreplicate(metrics)
        assert bool(metrics["flag"]) == (index == 3)
        result.append(float(metrics["loss"]))
    assert len({str(shard.device) for shard in state.params["out.kernel"].addressable_shards}) == strategy.size
    return result


# ---- volumes that are sharded along their first axis


@pytest.mark.long
def test_sharded_volumes_have_the_same_logits():
    check_sharded("2x2", gradients=False)


@pytest.mark.long
def test_volumes_sharded_in_any_way_have_the_same_logits_and_gradients():
    check_sharded("1x2", "1x4", "2x2", gradients=True)


def check_sharded(*names: str, gradients: bool) -> None:
    errors = in_subprocess("sharded", json.dumps(gradients), *names)
    for name in names:
        assert errors[name]["logits"] < 1e-12 and max(errors[name]["gradients"], default=0) < 1e-9, errors[name]
        assert bool(errors[name]["gradients"]) == gradients


def test_a_sharded_prediction_of_a_small_network_is_that_of_one_device():
    check_predictions("small")


@pytest.mark.long
def test_a_sharded_prediction_is_that_of_one_device():
    check_predictions("swin_unetr")


def check_predictions(network: str) -> None:
    differences = in_subprocess("predictions", network)
    assert differences["probabilities"] < 1e-4 and differences["labels that differ"] == 0 and differences["labels"] == [0, 1]


def sharded(with_gradients: str, *names: str) -> dict:
    """Returns the differences of logits and, if asked, gradients from those of one device in float64, relative to the largest value."""
    errors_of = {}
    sizes = [tuple(map(int, name.split("x"))) for name in names]
    jax.config.update("jax_enable_x64", True)
    config = CONFIG.replace(dtype="float64", param_dtype="float64", depths=(2, 1, 1, 1))
    weights = flatten(SwinUNETR(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    x, factors = rng.normal(size=(2, 64, 32, 32, 1)), rng.normal(size=(2, 64, 32, 32, 2))

    def loss(weights: dict, x: jax.Array, factors: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = build(config, weights)(x)
        return (jax.numpy.square(logits) * factors).mean(), logits

    results = {}
    for data, spatial in ((1, 1), *sizes):
        strategy = JitStrategy(device_mesh(2, spatial, jax.devices()[: data * spatial]))
        batch = strategy.shard_batch({"x": x, "factors": factors})
        inputs = strategy.replicate(weights), batch["x"], batch["factors"]
        if json.loads(with_gradients):
            (_, logits), gradients = jax.jit(with_mesh(strategy.mesh, jax.value_and_grad(loss, has_aux=True)))(*inputs)
        else:
            logits, gradients = jax.jit(with_mesh(strategy.mesh, lambda *inputs: loss(*inputs)[1]))(*inputs), {}
        if spatial > 1:
            assert logits.sharding.shard_shape(logits.shape)[1] == 64 // spatial
        results[f"{data}x{spatial}"] = [np.asarray(logits), *map(np.asarray, jax.tree.leaves(gradients))]
    expected = results.pop("1x1")
    for name, arrays in results.items():
        errors = [float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(expected, arrays)]
        errors_of[name] = {"logits": errors[0], "gradients": errors[1:]}
    return errors_of


def predictions(network: str) -> dict:
    """Returns the differences of predictions from those of one device, and the labels that occur."""
    from helpers.small_network import SmallNetwork

    differences = {"probabilities": 0.0, "labels that differ": 0}
    volume = np.random.default_rng(1).normal(size=(70, 40, 33, 1)).astype(np.float32)
    model = (SmallNetwork if network == "small" else SwinUNETR)(CONFIG, rngs=nnx.Rngs(0))
    task = Task.classes(2)
    expected = Segmenter([model], task, whole=True).run(volume, probabilities=True)
    differences["labels"] = np.unique(expected[0]).tolist()
    for spatial in (2, 4):
        labels, probabilities, windows = Segmenter([model], task, whole=True, spatial_shards=spatial).run(
            volume, probabilities=True
        )
        assert windows == 1
        differences["probabilities"] = max(differences["probabilities"], float(np.abs(probabilities - expected[1]).max()))
        differences["labels that differ"] += int((labels != expected[0]).sum())

    return differences


# ---- grids in blocks, as on a TPU


def test_a_grid_is_in_blocks_only_if_its_devices_share_no_volume():
    """On a TPU the grids of devices that share a batch are in blocks, and those of devices that share a volume are not."""
    results = in_subprocess("in_blocks")
    assert results["4x1"]["blocks"] and not results["2x2"]["blocks"]
    assert all(result["error"] < 1e-12 and result["sharded"] for result in results.values())


def in_blocks() -> dict:
    """Returns the errors of a residual block's results and gradients on several devices, from those on one device without blocks."""
    jax.config.update("jax_enable_x64", True)
    config = CONFIG.replace(dtype="float64", param_dtype="float64")
    structure, weights = nnx.split(ResBlock(2, 4, config, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 16, 2))

    def loss(weights: nnx.State, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = lane_blocks.from_blocks(nnx.merge(structure, weights)(lane_blocks.maybe_to_blocks(x))[0])
        return (jax.numpy.square(y) * jax.numpy.sin(x[..., :1])).mean(), y

    run = jax.value_and_grad(loss, (0, 1), has_aux=True)
    expected = jax.tree.leaves(jax.jit(run)(weights, x))
    lane_blocks.MIN_EDGE, dispatch.target_platform = 8, lambda: "tpu"
    results_of = {}
    for data, spatial in ((4, 1), (2, 2)):
        strategy = JitStrategy(device_mesh(4, spatial, jax.devices()[:4]))
        function = jax.jit(with_mesh(strategy.mesh, run))
        inputs = strategy.replicate(weights), strategy.shard_batch({"x": x})["x"]
        results = jax.tree.leaves(function(*inputs))
        y = next(a for a in results if a.shape == (*x.shape[:-1], 4))
        results_of[f"{data}x{spatial}"] = {
            "blocks": "x128x2x2x2x" in function.lower(*inputs).as_text(),
            "error": max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(results, expected)),
            "sharded": y.sharding.shard_shape(y.shape)[0] == len(x) // data,
        }
    return results_of


# ---- the mesh


def some_devices(processes: int, per_process: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(process_index=p, id=p * per_process + n) for n in range(per_process) for p in range(processes)]


@pytest.mark.parametrize(
    ("batch", "spatial", "processes", "per_process", "shape"),
    [
        (4, 1, 1, 8, (4, 1)),
        (3, 1, 1, 8, (3, 1)),
        (1, 1, 1, 8, (1, 1)),
        (2, 4, 1, 8, (2, 4)),
        (1, 3, 1, 8, (1, 3)),
        (16, 1, 2, 8, (16, 1)),
        (4, 4, 2, 8, (4, 4)),
    ],
)
def test_the_mesh_has_as_many_devices_as_share_a_batch_evenly(batch, spatial, processes, per_process, shape):
    grid = device_grid(batch, spatial, some_devices(processes, per_process))
    assert grid.shape == shape
    for devices in grid:
        assert len({device.process_index for device in devices}) == 1


@pytest.mark.parametrize(
    ("batch", "spatial", "processes", "per_process", "message"),
    [
        (4, 9, 1, 8, "cannot be divided among 9 of the 8 devices"),
        (4, 3, 2, 8, "cannot be divided among 3 of the 8 devices"),
        (4, 1, 2, 4, "a batch of 4 cannot be shared evenly by 8 devices of 2 processes: choose a multiple of 8"),
        (3, 2, 2, 4, "by 8 devices of 2 processes with 2 for each sample: choose a multiple of 4"),
    ],
)
def test_errors_of_devices_that_cannot_share(batch, spatial, processes, per_process, message):
    with pytest.raises(InputError, match=message):
        device_grid(batch, spatial, some_devices(processes, per_process))


def devices_of_slices(*slices: int | None) -> list[SimpleNamespace]:
    """Returns two devices of each process, whose slices are given; None stands for a process whose devices do not state a slice."""
    return [
        SimpleNamespace(process_index=process, id=2 * process + n, **({} if index is None else {"slice_index": index}))
        for n in (1, 0)
        for process, index in enumerate(slices)
    ]


@pytest.mark.parametrize(
    ("slices", "processes"),
    [
        ((0, 0, 1, 1), [0, 1, 2, 3]),
        ((1, 1, 0, 0), [2, 3, 0, 1]),
        ((1, 0, 1, 0), [1, 3, 0, 2]),  # the processes of a job were assigned to two machines in turn
        ((None, None, None, None), [0, 1, 2, 3]),
        ((1, None, 1, None), [1, 3, 0, 2]),
    ],
)
@pytest.mark.parametrize("spatial", [1, 2])
def test_devices_of_a_slice_are_neighbours_and_each_process_holds_its_share(slices, processes, spatial):
    grid = device_grid(16, spatial, devices_of_slices(*slices))
    assert [device.id for device in grid.flat] == [2 * process + n for process in processes for n in (0, 1)]
    assert all(len({device.process_index for device in row}) == 1 for row in grid)
    samples = 16 // len(grid)  # each row of the grid has this number of samples
    for process in range(4):
        share, rows = process_share(grid.flat, process), [n for n, row in enumerate(grid) if row[0].process_index == process]
        assert (share.number, share.count) == (processes.index(process), 4)
        assert [*range(4 * share.number, 4 * share.number + 4)] == [row * samples + n for row in rows for n in range(samples)]


def test_devices_of_a_process_are_adjacent_even_if_it_has_several_slices():
    devices = devices_of_slices(1, 0, 1)
    devices[0].slice_index = 0  # the second device of the first process
    assert [(device.process_index, device.slice_index) for device in sort_devices(devices)] == [
        *[(0, 0), (0, 1)],
        *[(1, 0), (1, 0)],
        *[(2, 1), (2, 1)],
    ]


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_default_matmul_precision", "highest")
    work = {f.__name__: f for f in (losses, losses_of_a_small_network, sharded, predictions, in_blocks)}
    print(json.dumps(work[sys.argv[1]](*sys.argv[2:])))
