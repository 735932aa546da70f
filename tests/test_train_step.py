"""The training step: losses equal to those of PyTorch, accumulated batches, averages of weights, running statistics and random numbers."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_network import forget

from swinunetr_jax import InputError, Task
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.losses import Loss
from swinunetr_jax.runtime.sharding import device_mesh
from swinunetr_jax.runtime.strategies import JitStrategy
from swinunetr_jax.training import checkpoints, restore
from swinunetr_jax.training import step as training_step
from swinunetr_jax.training.checkpoints import Progress
from swinunetr_jax.training.config import Optim
from swinunetr_jax.training.optim import learning_rate
from swinunetr_jax.training.step import State, Training
from swinunetr_jax.weights.load import save_params
from swinunetr_jax.weights.params import shapes

STEPS = 10
SHAPE = (64, 64, 32)
SMALL = SwinUNETRConfig(in_channels=2, out_channels=3, feature_size=12)
SMALLEST = SMALL.replace(depths=(1, 1, 1, 1))


@pytest.fixture(autouse=True)
def forget_programs(monkeypatch):
    yield
    monkeypatch.undo()
    forget()


def batch(task: Task, index: int, count: int = 1, shape: tuple[int, ...] = SHAPE) -> dict[str, np.ndarray]:
    """Returns a batch of noise with a labelled ball, which differs for each index."""
    rng = np.random.default_rng(index)
    image = rng.normal(size=(count, *shape, 2)).astype(np.float32)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    centre = rng.uniform(0.3, 0.7, (count, 3)) * shape
    distance = np.linalg.norm(grid[None] - centre[:, None, None, None], axis=-1)
    values = [1, 2, 4] if task.kind == "regions" else [1, 1, 2]
    label = np.select([distance < 5, distance < 12, distance < 8 + 0.2 * grid[..., 0]], values, 0).astype(np.uint8)
    image[..., 0] += label
    return {"image": image, "label": label, "sample": np.arange(index, index + count, dtype=np.int32)}


def test_four_steps_agree_with_pytorch(tmp_path):
    check_agreement_with_pytorch("classes, Dice and cross-entropy", SMALLEST, (64, 32, 32), 4, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", ["regions, Dice", "classes, Dice and cross-entropy"])
def test_ten_steps_agree_with_pytorch(name, tmp_path):
    check_agreement_with_pytorch(name, SMALL, SHAPE, STEPS, tmp_path)


def check_agreement_with_pytorch(name: str, config: SwinUNETRConfig, shape: tuple[int, ...], steps: int, tmp_path: Path) -> None:
    """Compares the losses of training with the paper's optimizer. Both start from the weights that our converter writes for PyTorch."""
    torch = pytest.importorskip("torch")
    from monai.losses import DiceCELoss, DiceLoss
    from monai.networks.nets import SwinUNETR

    if name.startswith("regions"):
        task, loss, theirs = Task.brats(channels=()), Loss(kind="dice"), DiceLoss(sigmoid=True)
    else:
        task, loss, theirs = Task.classes(3), Loss(kind="dice_ce"), DiceCELoss(softmax=True, to_onehot_y=True)
    training = Training(config, task, loss, Optim(lr=1e-4, weight_decay=1e-5, schedule="constant"), steps, seed=0)
    weights = training.random_weights()
    state, step = training.init(weights), training.compile()

    save_params(tmp_path / "start.pt", config, weights, to="monai")
    network = SwinUNETR(in_channels=2, out_channels=3, feature_size=12, depths=config.depths)
    network.load_state_dict(torch.load(tmp_path / "start.pt"), strict=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=1e-5)
    ours, reference = [], []
    for index in range(steps):
        samples = batch(task, index, shape=shape)
        image, label = samples["image"], samples["label"]
        state, metrics = step(state, samples)
        ours.append(float(metrics["loss"]))

        logits = network(torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
        if task.kind == "regions":
            target = np.stack([np.isin(label, output.members) for output in task.outputs], 1).astype(np.float32)
        else:
            target = label[:, None]
        value = theirs(logits, torch.from_numpy(target))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        reference.append(value.item())
    assert np.ptp(reference) > 1e-3  # the batches differ, and so do their losses
    np.testing.assert_allclose(ours, reference, rtol=1e-4)


@pytest.fixture(scope="module")
def brats_batch():
    return batch(Task.brats(channels=()), 0, 2)


def make(**optim) -> Training:
    return Training(SMALLEST, Task.brats(channels=()), Loss(), Optim(**{"schedule": "constant", **optim}), STEPS, seed=0)


def start(training: Training) -> State:
    return training.init(training.random_weights())


def test_a_batch_in_parts_is_the_same_step(brats_batch, small_network):
    at_once, in_parts = make(lr=1e-3), make(lr=1e-3, accumulate=2)
    expected, expected_metrics = at_once.compile()(start(at_once), brats_batch)
    state, metrics = in_parts.compile()(start(in_parts), brats_batch)
    np.testing.assert_allclose(expected_metrics["loss"], metrics["loss"], rtol=1e-6)
    np.testing.assert_allclose(expected_metrics["grad_norm"], metrics["grad_norm"], rtol=1e-4)
    # Adam's first step depends on the gradient's sign. Where the gradient is only a rounding error, the results differ by up to two
    # learning rates.
    differences = [np.abs(np.asarray(expected.params[name]) - np.asarray(state.params[name])) for name in expected.params]
    assert np.mean(np.concatenate([a.ravel() for a in differences]) > 1e-5) < 1e-3


def test_a_step_can_be_compiled_from_shapes_alone(small_network):
    """`tools/pod_plan.py` compiles steps in this way."""
    training, strategy = make(lr=1e-3), JitStrategy(device_mesh(2, 1, jax.devices()[:1]))
    samples = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=strategy.batch_sharding(array.ndim))
        for name, array in batch(training.task, 0, 2).items()
    }
    flags = jax.ShapeDtypeStruct((1,), jnp.int32)
    state, metrics = strategy.compile(training.step, {}).lower(training.like(), samples, flags).out_info
    assert state.params["out.kernel"].shape == (12, 3) and {"loss", "grad_norm", "lr", "flag"} == set(metrics)


def test_clipping_and_averaging(brats_batch, small_network):
    training = make(lr=1e-3, ema=0.9, clip=1e-3)
    before = jax.tree.map(np.asarray, start(training))
    state, metrics = training.compile()(start(training), brats_batch)
    assert metrics["grad_norm"] > 1e-3  # the norm before clipping
    decay = 1 / 10  # the decay of the first step
    for name, weights in state.params.items():
        expected = before.params[name] + (1 - decay) * (np.asarray(weights) - before.params[name])
        np.testing.assert_allclose(state.average[name], expected, atol=1e-6)
    assert int(state.step) == 1
    moment = next(leaf for leaf in jax.tree.leaves(state.opt) if leaf.shape == state.params["out.kernel"].shape)
    assert np.isfinite(moment).all()


@pytest.mark.fault("1.15")
def test_the_average_of_the_weights_has_statistics_of_its_own(monkeypatch):
    """The network that is validated and saved has averaged weights and, with the same decay, averaged running statistics."""
    training = make(lr=1e-3, ema=0.9)
    monkeypatch.setattr(training_step, "statistics", lambda config: {"norm.mean", "norm.count"})
    weights = {"kernel": np.ones(3, np.float32), "norm.mean": np.zeros(2, np.float32), "norm.count": np.int32(0)}
    state, expected = training.init(weights), dict(weights)
    for index, mean in enumerate((1.0, 4.0, 2.0)):
        stats = {"norm.mean": jnp.full(2, mean), "norm.count": jnp.int32(index + 1)}
        gradients = {"kernel": jnp.ones(3)}
        results = ((jnp.float32(0), (stats, {})), gradients)
        monkeypatch.setattr(Training, "_gradients", lambda *_, results=results: results)
        state, _ = training.step(state, {})
        decay = min(0.9, (1 + index) / (10 + index))
        for name, new in (("kernel", state.params["kernel"]), ("norm.mean", stats["norm.mean"])):
            expected[name] = decay * expected[name] + (1 - decay) * np.asarray(new)
    for name in ("kernel", "norm.mean"):
        np.testing.assert_allclose(state.network[name], expected[name], rtol=1e-6)
    assert state.network["norm.count"] == 3
    np.testing.assert_array_equal(state.stats["norm.mean"], [2, 2])  # those of the raw weights
    plain = make(lr=1e-3).init(weights)
    assert plain.average_stats == {} and set(plain.network) == set(weights)


@pytest.mark.fault("1.15")
def test_both_kinds_of_statistics_are_restored(tmp_path):
    config = SMALL.replace(depths=(1, 1, 1, 1), norm_name="batch")
    training = dataclasses.replace(make(ema=0.9), config=config)
    rng = np.random.default_rng(0)
    state = training.init({n: np.asarray(rng.uniform(0.5, 1.5, v.shape), v.dtype) for n, v in shapes(config).items()})
    state = dataclasses.replace(state, stats={name: np.asarray(value) * 2 for name, value in state.stats.items()})
    checkpoints.save(tmp_path, checkpoints.snapshot(state), Progress(step=3), config, training.task, keep=1)
    restored, progress = restore.read(tmp_path, 3, training.like(), config)
    assert progress == Progress(step=3)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    mean = "encoder1.norm1.mean"
    network = restore.read_checkpoint(tmp_path / "last").params
    np.testing.assert_array_equal(network[mean], state.average_stats[mean])
    assert not np.array_equal(network[mean], state.stats[mean])


def test_a_state_of_other_shapes_is_refused_before_any_array_is_read(tmp_path, small_network, monkeypatch):
    training = make(ema=0.9)
    checkpoints.save(tmp_path, checkpoints.snapshot(start(training)), Progress(step=3), SMALLEST, training.task, keep=1)
    monkeypatch.setattr(restore, "read_arrays", lambda *_: pytest.fail("the arrays were read"))
    with pytest.raises(InputError, match="the state of another network or optimizer") as error:
        restore.read(tmp_path, 3, make().like(), SMALLEST)
    assert "params.out.kernel: got (12, 3), expected nothing" in str(error.value)


def test_the_schedules():
    with_warmup = learning_rate(Optim(lr=1.0, warmup=4), 12)
    np.testing.assert_allclose([with_warmup(step) for step in range(5)], [0.25, 0.5, 0.75, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(with_warmup(8), 0.5, rtol=1e-6)
    np.testing.assert_allclose(with_warmup(12), 0.0, atol=1e-7)
    with_warmup_share = learning_rate(Optim(lr=1.0, warmup=0.25), 8)
    np.testing.assert_allclose([with_warmup_share(step) for step in range(3)], [0.5, 1.0, 1.0], rtol=1e-6)
    polynomial = learning_rate(Optim(lr=1.0, schedule="polynomial", power=1.0), 10)
    np.testing.assert_allclose([polynomial(0), polynomial(5), polynomial(10)], [1.0, 0.5, 0.0], atol=1e-6)
    assert float(learning_rate(Optim(lr=0.1, schedule="constant"), 5)(4)) == pytest.approx(0.1)


@pytest.mark.long
def test_stochastic_depth_depends_on_seed_and_step(brats_batch):
    training = dataclasses.replace(make(lr=1e-30), config=SMALLEST.replace(dropout_path_rate=0.5))
    check_dependence_on_seed_and_step(training, brats_batch)


def noisy(task, config, rngs):
    """Returns an objective that draws a random number."""
    return lambda model, batch, key: model(batch["image"]).mean() + jax.random.normal(key)


def test_the_key_of_a_step_depends_on_seed_and_step(brats_batch, small_network):
    check_dependence_on_seed_and_step(dataclasses.replace(make(lr=1e-30), objective=noisy), brats_batch)


def check_dependence_on_seed_and_step(training: Training, samples: dict[str, np.ndarray]) -> None:
    step = jax.jit(training.step)
    state = start(training)
    first, again = (float(step(state, samples)[1]["loss"]) for _ in range(2))
    later = float(step(dataclasses.replace(state, step=jnp.int32(1)), samples)[1]["loss"])
    other = jax.jit(dataclasses.replace(training, seed=1).step)
    assert first == again
    assert len({first, later, float(other(state, samples)[1]["loss"])}) == 3
