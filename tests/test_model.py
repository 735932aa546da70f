"""The whole network: its size, initialisation, errors and randomness. No part imports a part of a higher layer."""

import ast
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swinunetr_jax import InputError, SwinUNETR, SwinUNETRConfig
from swinunetr_jax.weights.params import count_parameters, flatten, shapes

ROOT = Path(__file__).parents[1] / "swinunetr_jax"
SMALL = SwinUNETRConfig(in_channels=2, out_channels=2, feature_size=12)


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"in_channels": 4, "out_channels": 3, "feature_size": 48}, 62_191_941),
        ({"in_channels": 1, "out_channels": 14, "feature_size": 48}, 62_187_296),
        ({"in_channels": 1, "out_channels": 14, "feature_size": 24}, 15_703_304),
        ({"in_channels": 1, "out_channels": 14, "feature_size": 12}, 4_078_220),
        ({"in_channels": 4, "out_channels": 3, "feature_size": 48, "use_v2": True}, 72_767_301),
        ({"in_channels": 4, "out_channels": 3, "feature_size": 96}, 248_099_877),
        ({"in_channels": 1, "out_channels": 2, "feature_size": 24, "spatial_dims": 2}, 6_302_228),
    ],
)
def test_parameter_counts(fields, count):
    assert count_parameters(shapes(SwinUNETRConfig(**fields))) == count


def test_the_initialisation_is_that_of_pytorch():
    params = flatten(SwinUNETR(SwinUNETRConfig(in_channels=4, out_channels=3), rngs=nnx.Rngs(0)))

    def check(name, fan_in):
        bound = 1 / math.sqrt(fan_in)
        assert np.abs(params[name]).max() <= bound
        assert params[name].std() == pytest.approx(bound / math.sqrt(3), rel=0.05)

    check("swin.stages.0.blocks.0.attn.qkv.kernel", 24)
    check("swin.stages.1.blocks.0.mlp.linear2.kernel", 192)
    check("encoder2.conv1.kernel", 27 * 24)
    check("decoder5.up.kernel", 8 * 192)  # PyTorch counts the outputs of a transposed convolution
    check("swin.stages.3.blocks.1.attn.qkv.bias", 192)
    assert params["swin.stages.0.blocks.0.attn.relative_position_bias"].std() == pytest.approx(0.02, rel=0.05)
    assert np.all(params["swin.stages.0.blocks.0.norm1.scale"] == 1)
    assert np.all(params["swin.stages.0.merge.norm.bias"] == 0)


def test_the_seed_determines_the_weights():
    first, again, other = (flatten(SwinUNETR(SMALL, rngs=nnx.Rngs(seed))) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["out.kernel"], other["out.kernel"])


def test_drop_path_rates_increase_linearly_over_all_blocks():
    config = SMALL.replace(depths=(2, 4, 2, 2), dropout_path_rate=0.18)
    model = nnx.eval_shape(lambda: SwinUNETR(config, rngs=nnx.Rngs(0)))
    rates = [block.drop_path_rate for stage in model.swin.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, np.arange(10) * 0.02)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 64, 64, 2), r"\[b, d, h, w, c\]"),
        ((1, 64, 64, 64, 3), "2 input channels"),
        ((1, 2, 64, 64, 64), "channels come last"),
        ((1, 64, 60, 64, 2), r"axes \[1\]"),
        ((1, 32, 32, 32, 2), "one voxel"),
    ],
)
def test_errors_of_wrong_shapes(shape, text):
    model = nnx.eval_shape(lambda: SwinUNETR(SMALL, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=text):
        jax.eval_shape(model, jax.ShapeDtypeStruct(shape, jnp.float32))


def test_the_key_determines_the_randomness():
    """All random operations are in the encoder. In 2-D it compiles ten times as fast as in 3-D."""
    config = SMALL.replace(
        spatial_dims=2, window_size=(7, 7), depths=(2, 1, 1, 1), drop_rate=0.2, attn_drop_rate=0.2, dropout_path_rate=0.2
    )
    model = SwinUNETR(config, rngs=nnx.Rngs(0)).swin
    forward = jax.jit(lambda model, x, key: model(x, key)[0][-1])
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 2)).astype(np.float32)
    first, again = (forward(model, x, jax.random.key(1)) for _ in range(2))
    other, without_key = forward(model, x, jax.random.key(2)), forward(model, x, None)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert not np.allclose(first, without_key)
    np.testing.assert_array_equal(without_key, forward(model, x, None))


# ---- no part imports a part of a higher layer


LAYERS = {  # the parts of the library that each part may import
    "errors": set(),
    "version": set(),
    "files": {"errors"},
    "console": {"errors"},
    "arguments": {"errors", "buckets"},
    "buckets": {"errors"},
    "alarm": set(),
    "fields": {"errors"},
    "hyena_options": {"errors", "fields"},
    "config": {"errors", "fields", "hyena_options"},
    "output": {"errors", "fields"},
    "task": {"config", "errors", "fields", "output", "data.brats", "data.scan_range"},
    "presets": {"errors", "task"},
    "runtime": {"errors"},
    "ops": {"runtime"},
    "augment": {"errors"},
    "data.brats": set(),
    "data.boxes": set(),
    "data.scan_range": {"errors"},
    "data.nifti": {"errors"},
    "data.formats": {"errors", "output", "task", "version", "data.boxes", "data.nifti"},
    "data.discovery": {"errors", "task", "data.brats", "data.nifti", "data.formats"},
    "data.check": {"errors", "version", "data.brats", "data.nifti", "data.discovery", "data.formats"},
    "data.prepare": {"errors", "task", "data.boxes", "data.nifti", "data.discovery", "data.check", "data.formats"},
    "data.prepared": {"errors", "task", "buckets", "data.discovery", "data.check", "data.prepare", "data.formats"},
    "data.augment": {"errors", "task", "data.prepare"},
    "data.pipeline": {"errors", "data.prepare", "data.augment"},
    "data.phantom": {"errors", "data.brats", "data.nifti"},
    "metrics": {"errors", "task", "data"},
    "evaluation": {"errors", "output", "task", "version", "data", "metrics"},
    "postprocess": {"errors", "output", "task", "data"},
    "losses": {"errors", "fields", "runtime", "task"},
    "model": {"config", "errors", "fields", "ops", "runtime"},
    "parameters": {"errors", "fields", "model", "runtime"},
    "explanation": {"config", "errors", "model", "ops", "runtime"},
    "saliency": {"errors", "model", "runtime", "task"},
    "registry": {"errors", "model"},
    "weights": {"buckets", "config", "errors", "output", "task", "model", "registry"},
    "packages": {"buckets", "config", "data", "errors", "task", "version", "postprocess", "weights", "training"},
    "export": {"config", "errors", "fields", "runtime", "task", "version", "weights"},
    "statistics": {"errors", "task", "data"},
    "viz": {"errors", "output", "task", "data"},
    "viewer": {"errors", "task", "version", "data", "viz"},
    "uncertainty": {"errors", "task", "metrics"},
    "inference": {
        "alarm",
        "buckets",
        "config",
        "errors",
        "runtime",
        "task",
        "uncertainty",
        "version",
        "data",
        "model",
        "postprocess",
        "presets",
        "saliency",
        "statistics",
        "viewer",
        "viz",
        "weights",
    },
    "commands": {
        "buckets",
        "config",
        "errors",
        "output",
        "task",
        "data",
        "inference",
        "evaluation",
        "export",
        "packages",
        "postprocess",
        "presets",
        "runtime",
        "uncertainty",
        "weights",
        "version",
        "viewer",
        "training",
    },
    "cli": {"arguments", "commands", "errors", "version", "training"},
}
FORBIDDEN = {"torch", "monai", "train", "tools", "tests"}


def imports(path):
    """Yields the absolute names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(module):
    """Returns the part of the library that a module belongs to: "weights" for swinunetr_jax.weights.load, "data.nifti" inside data."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[0] == "data" else parts[:1])


def test_imports_point_down():
    for path in ROOT.rglob("*.py"):
        part = part_of(f"swinunetr_jax.{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}")
        if part in ("__init__", "data.__init__"):
            continue
        names = list(imports(path))
        assert not FORBIDDEN & {name.split(".")[0] for name in names}, path
        ours = {part_of(name) for name in names if name.startswith("swinunetr_jax.")} - {"data"}
        allowed = LAYERS[part] | {part, "files", "console"}
        not_allowed = {name for name in ours if name not in allowed and name.split(".")[0] not in allowed}
        assert not not_allowed, f"{path} imports {not_allowed}"
        if part.split(".")[0] in ("data", "metrics", "evaluation", "postprocess"):
            assert not {"jax", "flax"} & {name.split(".")[0] for name in names}, path
