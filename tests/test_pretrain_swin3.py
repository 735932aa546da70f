"""The objective swin3: its views, its losses and gradients in PyTorch, and the weights that it does not train.

The reference is written here from layers of PyTorch as the paper's code computes it; the encoder is that of MONAI. The tolerances are
relative to the largest magnitude of each array.
"""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.compile_effort import OPTIMIZED
from scipy import stats

from swinunetr_jax import InputError, SwinUNETRConfig, Task
from swinunetr_jax.losses import Loss
from swinunetr_jax.model.custom import CustomNetwork
from swinunetr_jax.ops import pointwise
from swinunetr_jax.training import checkpoints, restore
from swinunetr_jax.training.checkpoints import Progress
from swinunetr_jax.training.config import Optim, Pretrain
from swinunetr_jax.training.objective import Objective, own_parameters
from swinunetr_jax.training.pretrain.cutout import Boxes, Draws, box_limit, cut_out, draw_view, noise_of
from swinunetr_jax.training.pretrain.swin3 import Swin3, Swin3Factory, contrast_loss, upsample, view_keys
from swinunetr_jax.training.step import Training
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.params import flatten

FLOAT32, FLOAT64 = (1e-5, 1e-4), (1e-10, 1e-10)  # of losses and of gradients
SEED = 7
FIELDS: dict[str, Any] = {"in_channels": 2, "out_channels": 3, "feature_size": 12, "depths": (1, 1, 1, 1), "window_size": 4}
CONFIG = SwinUNETRConfig(**FIELDS)
ROI = (64, 32, 32)
SIZE = (24, 20, 20)  # a size for views, which need no network


def task_of(roi: tuple[int, int, int] = ROI) -> Task:
    return dataclasses.replace(Task.classes(3), roi=roi)


def images_of(count: int, size: tuple[int, int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, *size, 2)).astype(np.float32)


def objective(**options: Any) -> Swin3:
    return Swin3Factory(Pretrain(**options), SEED)(task_of(), CONFIG, nnx.Rngs(0))


def draws_of(samples: np.ndarray, size: tuple[int, int, int], local_batch: int) -> Any:
    """Returns the draws of both views of these samples, NumPy arrays [b, 2, …], and the data of the keys of the noise."""
    draw = jax.vmap(jax.vmap(lambda key: draw_view(key, size, local_batch)))
    draws = jax.jit(draw)(view_keys(SEED, jnp.asarray(samples)))
    return jax.tree.map(np.asarray, draws._replace(noise_key=jax.random.key_data(draws.noise_key)))


# ---- the reference


def their_views(images: np.ndarray, draws: Any, view: int, local_batch: int) -> tuple[Any, Any]:
    """Returns one rotated view of each sample [b, c, x, y, z], and the same after the cut-outs, computed by the paper's loops."""
    torch = pytest.importorskip("torch")
    first = [torch.tensor(np.moveaxis(image, -1, 0)) for image in images]
    rotated = torch.stack([x.rot90(int(turns), (2, 3)) for x, turns in zip(first, draws.turns[:, view])])
    result = rotated.clone()
    for start in range(0, len(result), local_batch):
        x_aug = result[start : start + local_batch]
        for i in range(local_batch):
            own = jax.tree.map(operator.itemgetter((start + i, view)), draws)
            noise = np.asarray(noise_of(jax.random.wrap_key_data(own.noise_key), images.shape[1:], jnp.float32))
            for box in slices(own.noise_boxes):
                block = torch.tensor(np.moveaxis(noise[box], -1, 0)).to(x_aug.dtype)
                low, high = block.min(), block.max()
                x_aug[i][:, *box] = (block - low) / (high - low)
            if own.partner != i:
                for box in slices(own.content_boxes):
                    x_aug[i][:, *box] = x_aug[int(own.partner)][:, *box]
    return rotated, result


def slices(boxes: Any) -> list[tuple[slice, ...]]:
    needed = int(boxes.needed)
    return [tuple(map(slice, start, stop)) for start, stop in zip(boxes.start[:needed].tolist(), boxes.stop[:needed].tolist())]


def their_heads(torch: Any, width: int, channels: int) -> Any:
    layers, dim = [], width
    for following in (width // 2, width // 4, width // 8, width // 16, width // 16):
        layers += [
            torch.nn.Conv3d(dim, following, 3, padding=1),
            torch.nn.InstanceNorm3d(following),
            torch.nn.LeakyReLU(pointwise.NEGATIVE_SLOPE),
            torch.nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False),
        ]
        dim = following
    layers.append(torch.nn.Conv3d(dim, channels, 1))
    parts = {"rotation": torch.nn.Linear(width, 4), "projection": torch.nn.Linear(width, 512)}
    return torch.nn.ModuleDict({**parts, "reconstruction": torch.nn.Sequential(*layers)})


def their_losses(torch: Any, net: Any, heads: Any, views: list[Any], turns: np.ndarray, local_batch: int) -> list[Any]:
    """Returns the losses of rotation, contrast (the mean over local batches) and reconstruction.

    `views` has the rotated crops and the same after the cut-outs for each of the two views, and `turns` [b, 2] the rotations.
    """
    functional = torch.nn.functional
    rotations, contrasts, restored, targets, orientations = [], [], [], [], []
    for view, (rotated, changed) in enumerate(views):
        hidden = net.swinViT(changed.contiguous())[4]
        tokens = hidden.flatten(start_dim=2, end_dim=4).transpose(1, 2)
        rotations.append(heads["rotation"](tokens[:, 0]))
        contrasts.append(heads["projection"](tokens[:, 1]))
        restored.append(heads["reconstruction"](hidden))
        targets.append(rotated)
        orientations.append(torch.tensor(turns[:, view]).long())
    pairs = zip(*(view.split(local_batch) for view in contrasts))
    contrast = torch.stack([their_contrast(torch, *pair) for pair in pairs]).mean()
    rotation = functional.cross_entropy(torch.cat(rotations), torch.cat(orientations))
    return [rotation, contrast, functional.l1_loss(torch.cat(restored), torch.cat(targets))]


def their_contrast(torch: Any, x_i: Any, x_j: Any, temperature: float = 0.5) -> Any:
    functional, n = torch.nn.functional, len(x_i)
    z = torch.cat([functional.normalize(x_i, dim=1), functional.normalize(x_j, dim=1)])
    similarity = functional.cosine_similarity(z[:, None], z[None], dim=2)
    positive = torch.cat([similarity.diag(n), similarity.diag(-n)])
    others = (~torch.eye(2 * n, dtype=torch.bool)) * torch.exp(similarity / temperature)
    return -torch.log(torch.exp(positive / temperature) / others.sum(dim=1)).sum() / (2 * n)


def copy_heads(torch: Any, heads: Any, ours: dict[str, Any], dtype: Any) -> None:
    """Gives the heads our weights."""
    with torch.no_grad():
        for name, parameter in heads.named_parameters():
            parameter.copy_(torch.tensor(our_head(ours, name)).to(dtype))


def our_head(ours: dict[str, Any], name: str) -> np.ndarray:
    """Returns our array for the name and in the layout of the reference's heads."""
    part, *number, leaf = name.split(".")
    if number:
        index = int(number[0]) // 4
        part = f"{part}.convs.{index}" if index < 5 else f"{part}.out"
    array = np.asarray(ours[f"{part}.{'kernel' if leaf == 'weight' else 'bias'}"])
    return array if array.ndim == 1 else np.moveaxis(array, (-1, -2), (0, 1)).copy()


def largest_error(ours: Any, theirs: Any) -> float:
    theirs = theirs.detach().numpy()
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def check_parity(
    pair: Any, size: tuple[int, int, int], count: int, dtype: str, tolerances: tuple[float, float], given: bool = False
) -> None:
    """Compares the three losses and all gradients of the encoder and the heads.

    Args:
        pair: the networks.
        size: the size of the crops.
        count: the number of samples.
        dtype: the type of the computation.
        tolerances: the largest error relative to the largest magnitude of an array, of losses and of gradients.
        given: whether the views are noise instead of being made from the images.
    """
    torch = pytest.importorskip("torch")
    torch_dtype = getattr(torch, dtype)
    model = pair.ours(dtype=dtype, param_dtype=dtype)
    ours = Swin3(task_of(size), model.config, Pretrain(), SEED, nnx.Rngs(3))
    images, samples = images_of(count, size).astype(dtype), np.arange(10, 10 + count, dtype=np.int32)
    if given:
        rng = np.random.default_rng(0)
        arrays, turns = rng.normal(size=(2, 2, count, 2, *size)).astype(dtype), rng.integers(0, 4, (count, 2))
        views = [tuple(map(torch.tensor, arrays[:, view])) for view in (0, 1)]
        rotated, changed = (jnp.moveaxis(jnp.stack(list(each), axis=1), 2, -1).reshape(-1, *size, 2) for each in arrays)
        ours.views = lambda batch: (rotated, changed, jnp.asarray(turns, jnp.int32).reshape(-1))
    else:
        draws = draws_of(samples, size, 2)
        views, turns = [their_views(images, draws, view, 2) for view in (0, 1)], draws.turns
    graph, weights, rest = nnx.split((model, ours), nnx.Param, ...)

    def loss(weights: Any, batch: Any) -> Any:
        model, ours = nnx.merge(graph, weights, rest)
        return ours.losses(model, batch, None)

    function = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=OPTIMIZED if dtype == "float32" else None)
    (total, metrics), gradients = function(weights, {"image": jnp.asarray(images), "sample": jnp.asarray(samples)})
    assert total.dtype == dtype
    of_model, of_objective = nnx.merge(graph, gradients, rest)
    encoder, of_heads = to_monai(flatten(of_model), model.config), own_parameters(of_objective)

    net, heads = pair.theirs.to(torch_dtype), their_heads(torch, 192, 2).to(torch_dtype)
    copy_heads(torch, heads, own_parameters(ours), torch_dtype)
    losses = their_losses(torch, net, heads, views, turns, 2)
    sum(losses).backward()

    names = ["rotation_loss", "contrast_loss", "reconstruction_loss"]
    errors = {name: largest_error(metrics[name], value) for name, value in zip(names, losses, strict=True)}
    errors["total"] = largest_error(total, sum(losses))
    assert all(error <= tolerances[0] for error in errors.values()), errors
    compared = {name: p.grad for name, p in net.named_parameters() if name.startswith("swinViT.")}
    errors = {name: largest_error(encoder[name], value) for name, value in compared.items()}
    parameters = dict(heads.named_parameters())
    assert len(of_heads) == len(parameters)
    for name, parameter in parameters.items():
        # The instance norm after a convolution subtracts its bias, whose gradient is only rounding noise; it is compared with the kernel's.
        scale = parameters[name.replace("bias", "weight")].grad.abs().max()
        errors[name] = float(np.abs(our_head(of_heads, name) - parameter.grad.numpy()).max() / scale)
    assert all(error <= tolerances[1] for error in errors.values()), {n: e for n, e in errors.items() if not e <= tolerances[1]}
    decoder = {name: value for name, value in encoder.items() if not name.startswith("swinViT.")}
    assert decoder and not any(value.any() for value in decoder.values())


@pytest.mark.long  # .ci/run runs it
def test_losses_and_gradients_equal_those_of_pytorch_in_float64(monai_pair):
    pair = monai_pair(**FIELDS)
    with jax.enable_x64(True):
        check_parity(pair, ROI, 2, "float64", FLOAT64, given=True)


@pytest.mark.long
def test_losses_and_gradients_of_two_local_batches_equal_those_of_pytorch_in_float64(monai_pair):
    pair = monai_pair(**FIELDS)
    with jax.enable_x64(True):
        check_parity(pair, ROI, 4, "float64", FLOAT64)


@pytest.mark.long
def test_losses_and_gradients_equal_those_of_pytorch_in_float32(monai_pair, monkeypatch):
    """The leaky ReLU has a slope of 1, because otherwise single values near zero, whose sign changes by rounding, change gradients.

    The gradients of the reconstruction in PyTorch's float32 then differ by 5e-5 from those in its float64.
    """
    monkeypatch.setattr(pointwise, "NEGATIVE_SLOPE", 1.0)
    check_parity(monai_pair(**FIELDS), (64, 64, 64), 2, "float32", FLOAT32)


# ---- views


@pytest.fixture(scope="module")
def views() -> Callable[..., Any]:
    """A function (images, samples) -> rotated crops, views and numbers of rotations, for local batches of three samples."""
    run = jax.jit(objective(local_batch=3).views)
    return lambda images, samples: jax.tree.map(
        np.asarray, run({"image": jnp.asarray(images), "sample": jnp.asarray(samples, jnp.int32)})
    )


@pytest.mark.long  # .ci/run runs it
def test_views_equal_those_of_pytorch(views):
    """Three consecutive samples form a local batch, so that content comes from samples before and after their own cut-outs."""
    images, samples = images_of(6), np.arange(40, 46)
    draws = draws_of(samples, SIZE, 3)
    partners = draws.partner - np.tile(np.arange(3), 2)[:, None]
    assert {-1, 0, 1} <= set(np.sign(partners).ravel().tolist())
    rotated, changed, turns = views(images, samples)
    assert np.array_equal(turns, draws.turns.reshape(-1))
    for view in (0, 1):
        theirs = [np.moveaxis(x.numpy(), 1, -1) for x in their_views(images, draws, view, 3)]
        assert np.array_equal(rotated[view::2], theirs[0])
        np.testing.assert_allclose(changed[view::2], theirs[1], rtol=0, atol=1e-6)
        assert (changed[view::2] != rotated[view::2]).any((1, 2, 3, 4)).all()


@pytest.mark.long  # .ci/run runs it
def test_a_view_depends_on_its_local_batch_alone(views):
    """It does not depend on the position of the local batch, on the other samples of the batch, or on their number."""
    images = images_of(6)
    first = views(images, np.arange(40, 46))
    other = views(np.roll(images, 3, axis=0), [*range(43, 46), *range(90, 93)])
    assert all(np.array_equal(values[6:], moved[:6]) for values, moved in zip(first, other, strict=True))
    assert not np.array_equal(first[1][0], first[1][1])  # the two views of a sample differ
    draws, alone = draws_of(np.arange(40, 46), SIZE, 3), draws_of(np.arange(43, 46), SIZE, 3)
    assert all(np.array_equal(values[3:], part) for values, part in zip(jax.tree.leaves(draws), jax.tree.leaves(alone)))


def test_an_empty_box_and_a_box_of_one_voxel_are_finite():
    boxes = Boxes(np.array([[1, 1, 1], [2, 2, 2]]), np.array([[1, 3, 3], [3, 3, 3]]), np.array(2))
    draws = Draws(np.array(0), boxes, np.zeros(2, np.uint32), np.array(0), boxes)
    draws = jax.tree.map(lambda values: values[None, None], draws)
    draws = draws._replace(noise_key=jax.random.wrap_key_data(jnp.asarray(draws.noise_key)))
    result = np.asarray(jax.jit(cut_out)(jnp.full((1, 1, 4, 4, 4, 1), 7.0), draws))[0, 0, ..., 0]
    assert result[2, 2, 2] == 0 and np.count_nonzero(result == 7) == 63


def test_a_doubled_grid_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 1, 3, 4, 5)).astype(np.float32)
    theirs = torch.nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)(torch.tensor(np.moveaxis(x, -1, 1).copy()))
    np.testing.assert_allclose(upsample(jnp.asarray(x)), np.moveaxis(theirs.numpy(), 1, -1), atol=1e-6)


def test_contrast_is_within_each_group():
    """A group is a local batch, or with `contrast="all"` the whole batch."""
    torch = pytest.importorskip("torch")
    z = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    theirs = [float(their_contrast(torch, torch.tensor(group[::2]), torch.tensor(group[1::2]))) for group in z]
    ours = jax.jit(contrast_loss)
    assert float(ours(jnp.asarray(z))) == pytest.approx(np.mean(theirs), rel=1e-6)
    every = z.reshape(1, 12, 8)
    theirs = float(their_contrast(torch, torch.tensor(every[0, ::2]), torch.tensor(every[0, 1::2])))
    assert float(ours(jnp.asarray(every))) == pytest.approx(theirs, rel=1e-6)


# ---- the distribution of what is random


def paper_boxes(rng: np.random.Generator, size: tuple[int, int, int]) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Returns starts, ends and total volume of boxes, drawn one after another until their volume suffices, as in the paper's code."""
    dropped, total, starts, stops = rng.uniform(0, 0.3) * np.prod(size), 0, [], []
    least, most = np.array([int(0.05 * n) for n in size]), np.array([int(0.25 * n) for n in size])
    while total < dropped:
        start = rng.integers(0, size - least)
        stop = np.minimum(rng.integers(least, most) + start, size)
        total += int(np.prod(stop - start))
        starts.append(start)
        stops.append(stop)
    return starts, stops, total


@pytest.mark.long  # .ci/run runs it
@pytest.mark.parametrize("size", [(96, 64, 32), (16, 16, 16)])
def test_draws_are_distributed_as_in_the_paper(size):
    """In crops of 16³ a box can be empty. The seed is fixed, so that the p-values do not vary."""
    draws, rng = draws_of(np.arange(400), size, 3), np.random.default_rng(2)
    for values, number in ((draws.turns, 4), (draws.partner, 3)):
        both = np.zeros((number, number))
        np.add.at(both, tuple(values.T), 1)
        assert stats.chisquare(both.ravel()).pvalue > 0.01  # uniform, and independent in the two views

    pairs = zip(draws.noise_boxes, draws.content_boxes)
    ours = Boxes(*(np.concatenate(pair).reshape(-1, *pair[0].shape[2:]) for pair in pairs))
    theirs = [paper_boxes(rng, size) for _ in range(200)]
    assert ours.needed.max() < box_limit(size) / 1.5
    totals = np.prod(ours.stop - ours.start, axis=-1).sum(-1)
    assert stats.ks_2samp(totals, [total for *_, total in theirs]).pvalue > 0.01
    assert stats.ks_2samp(ours.needed, [len(starts) for starts, *_ in theirs]).pvalue > 0.01
    needed = np.arange(ours.start.shape[1]) < ours.needed[:, None]
    our_starts, our_stops = ours.start[needed], ours.stop[needed]
    their_starts, their_stops = (np.concatenate([values for values in part if values]) for part in list(zip(*theirs))[:2])
    for ours_of, theirs_of in ((our_starts, their_starts), (our_stops - our_starts, their_stops - their_starts)):
        for axis in range(3):
            counts = [np.bincount(values[:, axis], minlength=size[axis]) for values in (ours_of, theirs_of)]
            assert np.array_equal(counts[0] > 0, counts[1] > 0)
            assert stats.chi2_contingency([each[counts[0] > 0] for each in counts]).pvalue > 0.001


# ---- what is not trained


def test_only_the_encoder_is_trained_and_has_moments():
    training = Training(CONFIG, task_of(), Loss(), Optim(), 10, 0, objective=Swin3Factory(Pretrain(), SEED))
    like = training.like()
    moments = {str(path[-1].key) for path, leaf in jax.tree_util.tree_flatten_with_path(like.opt)[0] if leaf.shape}
    assert moments == {name for name in like.params if name.startswith("swin.")} | like.own.keys()
    assert len(like.own) == 16 and all(name.startswith("objective.") for name in like.own)


class Network(nnx.Module):
    """A network with two layers."""

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(in_channels, 4, rngs=rngs)
        self.second = nnx.Linear(4, out_channels, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None = None, train: bool = False) -> jax.Array:
        return self.second(self.first(x))


class TrainsFirst(Objective):
    """An objective whose loss depends on both layers and which trains one of them."""

    def __call__(self, model: nnx.Module, batch: Any, key: Any) -> tuple[Any, dict[str, Any]]:
        return jnp.square(model(batch["image"])).mean(), {}

    def trains(self, name: str) -> bool:
        return name.startswith("first.")


def test_other_weights_do_not_change_and_the_state_is_saved(tmp_path):
    """Not even the weight decay changes them."""
    config, task = CustomNetwork.of(Network).config(2, 3), task_of()
    optim = Optim(weight_decay=0.5, lr=0.1, clip=1.0, ema=0.9)
    training = Training(config, task, Loss(), optim, 10, 0, objective=lambda task, config, rngs: TrainsFirst())
    before = training.random_weights()
    batch = {"image": jnp.asarray(images_of(2)), "label": jnp.zeros((2, *SIZE), jnp.uint8), "sample": jnp.arange(2)}
    state, _ = training.compile()(training.init(before), batch)
    for name, value in before.items():
        trained = name.startswith("first.")
        assert np.array_equal(state.params[name], value) == np.array_equal(state.average[name], value) == (not trained), name
    checkpoints.save(tmp_path, state, Progress(step=1), config, task, keep=1)
    restored = restore.restore(tmp_path, training.like(), config)
    assert restored is not None and not restored[2]
    assert jax.tree.structure(restored[0]) == jax.tree.structure(state)
    assert all(map(np.array_equal, jax.tree.leaves(restored[0]), jax.tree.leaves(state)))


# ---- refusals


def test_folds_share_one_program():
    assert Swin3Factory(Pretrain(), 1) == Swin3Factory(Pretrain(), 1) != Swin3Factory(Pretrain(), 2)


def test_what_does_not_fit_is_refused():
    for roi, text in (((64, 64, 32), "64×64×32"), ((32, 32, 32), "needs two tokens")):
        with pytest.raises(InputError, match=text):
            Swin3Factory(Pretrain(), 0)(task_of(roi), CONFIG, nnx.Rngs(0))
    with pytest.raises(InputError, match=r"--pretrain\.local-batch is 1"):
        objective(local_batch=1)

    def unet(in_channels, out_channels, *, rngs):
        pytest.fail("the network was constructed, although it is refused")

    with pytest.raises(InputError, match="swin3 trains the encoder of a Swin UNETR, but the network is unet"):
        Swin3Factory(Pretrain(), 0)(task_of(), CustomNetwork.of(unet).config(1, 2), nnx.Rngs(0))
    with pytest.raises(InputError, match="3 samples cannot be divided into local batches of 2"):
        objective().views({"image": jnp.zeros((3, *SIZE, 2)), "sample": jnp.arange(3)})
