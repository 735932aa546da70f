"""Parameters by name: selections, labels for optimizers, and adapters of low rank."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from swinunetr_jax import InputError, SwinUNETR, SwinUNETRConfig
from swinunetr_jax.parameters import add_lora, label_parameters, merge_lora, parameter_names, scale_by_layer, select

CONFIG = SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2, norm_name="batch")
TRAINED = ("swin.stages.0.blocks.0.attn.qkv", "swin.stages.3.blocks.0.attn.proj")


@pytest.fixture(scope="module")
def model():
    return SwinUNETR(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (1, 64, 32, 1))


def arrays(model, kind=nnx.Param):
    return {".".join(map(str, path)): np.asarray(value[...]) for path, value in nnx.to_flat_state(nnx.state(model, kind))}


def changed(before, after):
    return {name for name in before if not np.array_equal(before[name], after[name])}


def ones(model):
    """Returns gradients of 1 for all parameters."""
    return jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))


def test_names_are_those_of_the_parameters_without_statistics(model):
    names = parameter_names(model)
    assert "swin.stages.0.blocks.0.attn.qkv.kernel" in names and "decoder1.block.norm1.scale" in names
    assert not [name for name in names if name.endswith((".mean", ".var", ".count"))]


def test_a_selection(model):
    assert select(model, "out.*", "swin.patch_embed.proj.b*").names == {"out.kernel", "out.bias", "swin.patch_embed.proj.bias"}
    assert len(select(model, "*").names) == len(parameter_names(model))
    with pytest.raises(InputError, match=r"'swin.stage.\*' matches no parameter.*swin.stages"):
        select(model, "out.*", "swin.stage.*")
    with pytest.raises(InputError, match="at least one pattern"):
        select(model)


def test_a_frozen_encoder_stays_as_it_is(model, x):
    model = nnx.clone(model)
    trainable = nnx.All(nnx.Param, nnx.Not(select(model, "swin.*")))
    optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=trainable)
    before = arrays(model)
    step = nnx.jit(nnx.value_and_grad(lambda model: jnp.mean(model(x) ** 2), argnums=nnx.DiffState(0, trainable)))
    _, gradients = step(model)
    optimizer.update(model, gradients)
    assert changed(before, arrays(model)) == {name for name in before if not name.startswith("swin.")}


def test_labels_for_the_parts_of_an_optimizer(model):
    model = nnx.clone(model)
    labels = label_parameters({"swin.patch_embed.*": "slow", "swin.*": "frozen"}, default="fast")
    rates = {"slow": optax.sgd(0.1), "fast": optax.sgd(1.0), "frozen": optax.set_to_zero()}
    optimizer = nnx.Optimizer(model, optax.multi_transform(rates, labels), wrt=nnx.Param)
    before = arrays(model)
    optimizer.update(model, ones(model))
    for name, value in arrays(model).items():
        rate = 0.1 if name.startswith("swin.patch_embed.") else 0 if name.startswith("swin.") else 1
        np.testing.assert_allclose(before[name] - value, rate, atol=1e-6, err_msg=name)
    weights = {"swin.patch_embed.bias": 1.0, "swin.stages.0": 2.0, "out.bias": 3.0}  # as in an optimizer of the trainer
    assert labels(weights) == {"swin.patch_embed.bias": "slow", "swin.stages.0": "frozen", "out.bias": "fast"}
    with pytest.raises(InputError, match=r"'decoder\*' matches no parameter"):
        label_parameters({"decoder*": "a"}, "b")(weights)
    with pytest.raises(InputError, match=r"no pattern matches the parameter out.bias"):
        label_parameters({"swin.*": "a"})(weights)


def test_layer_wise_rates_of_a_network(model):
    model = nnx.clone(model)
    optimizer = nnx.Optimizer(model, optax.chain(optax.sgd(1.0), scale_by_layer(0.5)), wrt=nnx.Param)
    before = arrays(model)
    optimizer.update(model, ones(model))
    after = arrays(model)
    for name, factor in (("swin.patch_embed.proj.bias", 0.5**5), ("swin.stages.1.merge.norm.bias", 0.5**3), ("out.bias", 1)):
        np.testing.assert_allclose(before[name] - after[name], factor, rtol=1e-5)
    with pytest.raises(InputError, match="`decay` must be above 0"):
        scale_by_layer(1.5)


def test_adapters_of_low_rank(model, x):
    adapted = add_lora(model, 2, layers=(*TRAINED, "*.linear1"), rngs=nnx.Rngs(1))
    forward = nnx.jit(lambda model, x: model(x))
    np.testing.assert_array_equal(forward(adapted, x), forward(model, x))
    new = set(arrays(adapted, nnx.LoRAParam))
    layers = [*TRAINED, *(f"swin.stages.{stage}.blocks.0.mlp.linear1" for stage in range(4))]
    assert new == {f"{layer}.{matrix}" for layer in layers for matrix in ("lora_a", "lora_b")}

    optimizer = nnx.Optimizer(adapted, optax.adam(1e-2), wrt=nnx.LoRAParam)
    loss = nnx.value_and_grad(lambda model: jnp.mean(model(x) ** 2), argnums=nnx.DiffState(0, nnx.LoRAParam))
    before = arrays(adapted)
    step = nnx.jit(loss)
    for _ in range(2):
        optimizer.update(adapted, step(adapted)[1])
    assert changed(before, arrays(adapted)) == new

    merged = merge_lora(adapted)
    assert parameter_names(merged) == parameter_names(model)
    y, original = forward(merged, x), forward(model, x)
    np.testing.assert_allclose(y, forward(adapted, x), atol=1e-6 * float(jnp.abs(y).max()))
    assert jnp.abs(y - original).max() > 1e-4
    name = TRAINED[0]
    a, b = (arrays(adapted)[f"{name}.lora_{letter}"] for letter in "ab")
    np.testing.assert_allclose(arrays(merged)[f"{name}.kernel"], arrays(model)[f"{name}.kernel"] + a @ b, atol=1e-7)


def test_the_initial_matrices_of_adapters_are_those_of_flax(model):
    a = arrays(add_lora(model, 64, rngs=nnx.Rngs(1)))["swin.stages.3.blocks.0.attn.qkv.lora_a"]
    bound = (6 / 96) ** 0.5
    assert abs(a).max() <= bound and abs(a.std() - bound / 3**0.5) < 0.01 * bound
    assert not (a == arrays(add_lora(model, 64, rngs=nnx.Rngs(2)))["swin.stages.3.blocks.0.attn.qkv.lora_a"]).any()


def test_wrong_uses_of_adapters(model, tmp_path):
    from swinunetr_jax import save_checkpoint

    adapted = add_lora(model, 1, rngs=nnx.Rngs(1))
    with pytest.raises(InputError, match="`rank` must be a positive integer, got 0"):
        add_lora(model, 0, rngs=nnx.Rngs(1))
    with pytest.raises(InputError, match="has adapters already"):
        add_lora(adapted, 1, rngs=nnx.Rngs(1))
    with pytest.raises(InputError, match=r"'\*.query' matches no linear layer; this network has \*.linear1, \*.linear2, \*.proj"):
        add_lora(model, 1, layers=("*.query",), rngs=nnx.Rngs(1))
    with pytest.raises(InputError, match="no adapters to merge"):
        merge_lora(model)
    with pytest.raises(InputError, match="merge_lora"):
        save_checkpoint(tmp_path / "network", adapted)
    assert not list(tmp_path.iterdir())
