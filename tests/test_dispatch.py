"""Implementations are chosen by platform and by shape, and the explained implementation is the compiled one."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swinunetr_jax
from swinunetr_jax import InputError, SwinUNETRConfig, explain
from swinunetr_jax.explanation import OPERATIONS
from swinunetr_jax.runtime.dispatch import (
    Implementation,
    Table,
    dispatch,
    for_device,
    hand_differentiated,
    layout_dispatch,
    platform_dispatch,
    record_choices,
    reference_ops,
)


def double(x):
    return 2 * x


def double_by_addition(x):
    return x + x


def gradient_of_three(inputs, output, dy):
    return (3 * dy,)


SMALL = Implementation(double_by_addition, gradient_of_three, supports=lambda x: len(x) < 4, requires="less than 4 numbers")
TABLE = Table("double", Implementation(double), {"cpu": (SMALL,), "tpu": (Implementation(double_by_addition),)})


def test_an_implementation_is_chosen_by_platform_and_by_the_shapes_of_the_inputs():
    few, many = jax.ShapeDtypeStruct((3,), "float32"), jax.ShapeDtypeStruct((4,), "float32")
    assert TABLE.choose("cpu", few) is SMALL
    assert TABLE.choose("cpu", many) is TABLE.reference
    assert TABLE.choose("tpu", many) is TABLE.platforms["tpu"][0]
    assert TABLE.choose("cuda", few) is TABLE.reference


def test_dispatch_calls_the_chosen_implementation_forward_and_backward():
    def gradient(x):
        return jax.grad(lambda x: dispatch(TABLE, x).sum())(x)

    few, many = jnp.arange(3.0), jnp.arange(4.0)
    np.testing.assert_array_equal(dispatch(TABLE, few), 2 * few)
    for function in (gradient, for_device(jax.local_devices(backend="cpu")[0], gradient)):
        np.testing.assert_array_equal(jax.jit(function)(few), [3, 3, 3])
        np.testing.assert_array_equal(jax.jit(function)(many), [2, 2, 2, 2])


def test_without_a_known_platform_the_compiler_chooses():
    x = jax.ShapeDtypeStruct((3,), "float32")
    traced = jax.jit(lambda x: dispatch(TABLE, x)).trace(x)
    for platform, operation in (("cpu", "add"), ("cuda", "multiply"), ("tpu", "add")):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert set(re.findall(r"stablehlo\.(add|multiply)", text)) == {operation}


def test_operations_inside_of_an_implementation_are_traced_for_its_platform_only():
    traced = []
    inner = Table(
        "inner",
        Implementation(lambda x: traced.append("reference") or x),
        {"cpu": (Implementation(lambda x: traced.append("cpu") or x),)},
    )
    outer = Table("outer", Implementation(double), {"cpu": (Implementation(lambda x: dispatch(inner, x)),)})
    jax.jit(lambda x: dispatch(outer, x)).trace(jax.ShapeDtypeStruct((3,), "float32"))
    assert traced == ["cpu"]


def test_a_layout_is_chosen_for_the_target_platform(monkeypatch):
    table = Table("layout", Implementation(lambda x: x), {"cpu": (Implementation(lambda x: x[None]),)})
    assert layout_dispatch(table, jnp.zeros(3)).shape == (1, 3)
    with record_choices("cuda") as choices:
        assert layout_dispatch(table, jnp.zeros(3)).shape == (3,)
    assert [choice.implementation for choice in choices] == [table.reference]


# ---- reference operations


@hand_differentiated
def triple(x):
    return 3 * x


triple.defvjp(lambda x: (triple(x), None), lambda _, dy: (5 * dy,))


# function, its derivative outside of reference_ops, and inside
FUNCTIONS = {
    "dispatch": (lambda x: dispatch(TABLE, x).sum(), 3, 2),
    "dispatch for a device": (for_device(jax.devices()[0], lambda x: dispatch(TABLE, x).sum()), 3, 2),
    "platform_dispatch": (lambda x: platform_dispatch(TABLE, x).sum(), 2, 2),
    "hand_differentiated": (lambda x: triple(x).sum(), 5, 3),
    "one implementation": (lambda x: SMALL(x).sum(), 3, 2),
    "checkpoint": (jax.checkpoint(lambda x: triple(x).sum()), 5, 3),
    "scan": (lambda x: jax.lax.scan(lambda sum_, x: (sum_ + triple(x), None), 0.0, x)[0], 5, 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_was_traced_outside_of_reference_ops_is_traced_again_inside(name):
    function, outside, inside = FUNCTIONS[name]
    x, traced = jnp.arange(3.0), []
    compiled = jax.jit(lambda x: traced.append(1) or function(x))
    np.testing.assert_array_equal(jax.grad(compiled)(x), [outside] * 3)
    with reference_ops():
        np.testing.assert_array_equal(jax.grad(compiled)(x), [inside] * 3)
        assert jax.jvp(compiled, (x,), (jnp.array([1.0, 0, 0]),))[1] == inside
    np.testing.assert_array_equal(jax.grad(compiled)(x), [outside] * 3)
    assert len(traced) == 2  # both programs stay in the cache


def test_only_the_reference_is_traced_in_reference_ops_for_every_platform():
    @reference_ops()
    def text(platform):
        with record_choices(platform) as choices:
            lowered = jax.jit(lambda x: dispatch(TABLE, x)).trace(jax.ShapeDtypeStruct((3,), "float32"))
            assert [choice.implementation for choice in choices] == [TABLE.reference]
            return lowered.lower(lowering_platforms=(platform,)).as_text()

    for platform in ("cpu", "cuda", "tpu"):
        assert set(re.findall(r"stablehlo\.(add|multiply)", text(platform))) == {"multiply"}


# ---- explanations

CONV = [(1, 96, 96, 96, 48), (3, 3, 3, 48, 48)]
UP_CONV = [(1, 24, 24, 24, 24), (1, 48, 48, 48, 12), (2, 2, 2, 24, 12), (3, 3, 3, 24, 12), (1, 1, 1, 24, 12)]
ATTENTION = [(8, 27, 2, 8)] * 3 + [(2, 27, 27)]
CHOSEN = [
    ("conv", CONV, "cpu", "conv.winograd.winograd"),
    ("conv", [(1, 6, 6, 6, 48), (3, 3, 3, 48, 48)], "cpu", "conv.cpu.im2col"),
    ("conv", [(1, 96, 96, 96, 3), (3, 3, 3, 3, 48)], "cpu", "conv.cpu.by_planes"),
    ("conv", CONV, "cuda", "conv.reference.conv"),
    ("conv", CONV, "tpu", "conv.tpu.planes_as_batch"),
    ("conv", [(1, 24, 24, 24, 48), (3, 3, 3, 48, 48)], "tpu", "conv.reference.conv"),
    ("up_conv", UP_CONV, "cpu", "up_conv.cpu.fused"),
    ("up_conv", UP_CONV, "cuda", "up_conv.cuda.fused"),
    ("up_conv", UP_CONV, "tpu", "up_conv.tpu.fused"),
    ("up_conv", [(1, 2, 2, 2, 24), (1, 4, 4, 4, 12), *UP_CONV[2:]], "cpu", "up_conv.reference.up_conv"),
    ("depthwise_conv", [(1, 4, 4, 4, 6), (3, 3, 3, 6)], "cpu", "hyena.depthwise_conv.sum_of_shifts"),
    ("depthwise_conv", [(1, 4, 4, 6), (3, 3, 6)], "tpu", "hyena.depthwise_conv.grouped_conv"),
    ("window_attention", ATTENTION, "cpu", "attention.cpu.chunks"),
    ("window_attention", ATTENTION, "cuda", "attention.reference.attention"),
    ("window_attention", ATTENTION, "tpu", "attention.tpu.chunks"),
    ("patch_conv", [(1, 8, 8, 8, 4), (2, 2, 2, 4, 12)], "tpu", "conv.tpu.pairs_of_planes"),
    ("patch_conv", [(1, 8, 8, 4), (2, 2, 4, 12)], "tpu", "conv.reference.patch_conv"),
]


@pytest.mark.parametrize(("operation", "shapes", "platform", "chosen"), CHOSEN)
def test_the_explained_implementation_is_the_compiled_one(operation, shapes, platform, chosen):
    """The functions of a lowered program have the names of the implementations."""
    (choice,) = explain(operation, shapes, platform).choices
    assert choice.chosen == chosen
    assert chosen not in choice.others
    inputs = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    lowered = jax.jit(OPERATIONS[operation]).trace(*inputs).lower(lowering_platforms=(platform,))
    compiled = set(re.findall(r"func\.func private @([a-z_0-9]+?)(?:_\d+)?\(", lowered.as_text()))
    name = chosen.rpartition(".")[2]
    assert name in compiled
    others = {other.partition(" ")[0].rpartition(".")[2] for other in choice.others} - {name, "conv"}
    assert not others & compiled  # "conv" may be a part of other operations


def test_an_explanation_as_text():
    assert str(explain("conv", [(1, 24, 24, 24, 48), (3, 3, 3, 48, 48)], "tpu")).splitlines() == [
        "conv [1, 24, 24, 24, 48], [3, 3, 3, 48, 48] float32 on tpu: conv.reference.conv",
        "    not conv.cpu.im2col (cpu): it is for cpu",
        "    not conv.winograd.winograd (cpu): it is for cpu",
        "    not conv.cpu.by_planes (cpu): it is for cpu",
        "    not conv.tpu.planes_as_batch: it requires at least 48 planes and at most 96 channels",
    ]


def test_the_explanation_of_a_network():
    config = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=24, depths=(1, 1, 1, 1))
    chosen = {
        platform: {(choice.operation, choice.chosen) for choice in explain(config, (1, 96, 96, 96, 4), platform).choices}
        for platform in ("cpu", "tpu")
    }
    assert ("conv of blocks", "conv.blocks.conv_blocks") in chosen["tpu"] - chosen["cpu"]
    assert ("window_attention", "attention.tpu.chunks") in chosen["tpu"]
    assert {("conv", "conv.cpu.im2col"), ("conv", "conv.winograd.winograd"), ("up_conv", "up_conv.cpu.fused")} <= chosen["cpu"]


@pytest.mark.parametrize(
    ("operation", "shapes", "platform", "message"),
    [
        ("conv", CONV, "rocm", "the platform must be one of cpu, cuda, tpu"),
        ("convolution", CONV, "cpu", "the operation must be one of conv, dense"),
        ("conv", CONV[:1], "cpu", "conv cannot take inputs of the shapes"),
        (SwinUNETRConfig(in_channels=4, out_channels=3), (1, 96, 96, 96, 2), "cpu", "4 input channels"),
    ],
)
def test_errors_of_explain(operation, shapes, platform, message):
    with pytest.raises(InputError, match=message):
        explain(operation, shapes, platform)


# ---- jit


def test_jit_traces_for_one_platform_and_passes_on_its_options():
    function = swinunetr_jax.jit(lambda x, flag: dispatch(TABLE, x) if flag else x, static_argnums=1)
    np.testing.assert_array_equal(function(jnp.arange(3.0), True), [0, 2, 4])
    assert "multiply" not in function.trace(jnp.arange(3.0), True).lower(lowering_platforms=("cuda",)).as_text()
    fast = swinunetr_jax.jit(double, device=jax.devices()[0], compiler_options={"xla_backend_optimization_level": 0})
    np.testing.assert_array_equal(fast(jnp.arange(3.0)), [0, 2, 4])


@pytest.mark.parametrize("name", ["compiler_options", "traced_for"])
def test_old_names_still_work_with_a_warning(name):
    with pytest.warns(DeprecationWarning, match=f"swinunetr_jax.{name} is deprecated"):
        function = getattr(swinunetr_jax, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert callable(function)
