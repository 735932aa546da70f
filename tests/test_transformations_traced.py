"""The network, its losses and their gradients under settings of JAX that forbid or check something, and inside `jax.shard_map`.

The settings act while a program is traced and change no number, so these programs are only traced. The gradients inside `shard_map` are
compared with those of one device by value.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from swinunetr_jax import SwinUNETR, SwinUNETRConfig, Task, reference_ops
from swinunetr_jax.losses import Loss

BASE = {"in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": (1, 1, 1, 1), "spatial_dims": 2}
NETWORKS = {
    "batch norm, v2, recomputed": {"norm_name": "batch", "use_v2": True, "use_checkpoint": True},
    "group norm, dropout": {
        "norm_name": ("group", {"num_groups": 4}),
        "drop_rate": 0.1,
        "attn_drop_rate": 0.1,
        "dropout_path_rate": 0.1,
    },
    "instance norm, patch norm, shifted windows": {"patch_norm": True, "qkv_bias": False, "depths": (2, 1, 1, 1)},
    "Hyena": {"hyena_stages": "HHHH"},
    "3-D": {"spatial_dims": 3, "feature_size": 24},
}
SETTINGS = {
    "ranks are not promoted": (lambda: jax.numpy_rank_promotion("raise"), "float32"),
    "types are not promoted, bfloat16": (lambda: jax.numpy_dtype_promotion("strict"), "bfloat16"),
    "types are not promoted, float32": (lambda: jax.numpy_dtype_promotion("strict"), "float32"),
    "no tracer leaks": (jax.checking_leaks, "float32"),
}
SHORT = {
    ("ranks are not promoted", "batch norm, v2, recomputed"),
    ("ranks are not promoted", "Hyena"),
    ("types are not promoted, bfloat16", "group norm, dropout"),
    ("types are not promoted, bfloat16", "instance norm, patch norm, shifted windows"),
    ("no tracer leaks", "group norm, dropout"),
}
CELLS = [
    pytest.param(setting, network, ops, marks=[] if (setting, network) in SHORT and ops == "ordinary" else pytest.mark.long)
    for setting in SETTINGS
    for network in NETWORKS
    for ops in ("ordinary", "reference")
]


def network_and_loss(options, shape):
    """Returns the trained and the other variables of a network, and its loss, (trained, others, images, labels, key) -> number."""
    config = SwinUNETRConfig(**{**BASE, **options})
    graph, trained, others = nnx.split(SwinUNETR(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
    task = Task.classes(2)

    def loss(trained, others, images, labels, key=None):
        logits = nnx.merge(graph, trained, others)(images, key=key, train=True)
        return Loss(kind="dice_ce", class_weights=(1.0, 2.0))(logits, labels, task)

    return trained, others, loss


@pytest.mark.parametrize(("setting", "network", "ops"), CELLS)
def test_gradients_can_be_traced_under_every_setting(setting, network, ops):
    context, dtype = SETTINGS[setting]
    shape = (2, 64, 64, 64, 1) if network == "3-D" else (2, 64, 32, 1)
    trained, others, loss = network_and_loss({**NETWORKS[network], "dtype": dtype}, shape)
    images, labels = jax.ShapeDtypeStruct(shape, "float32"), jax.ShapeDtypeStruct(shape[:-1], "int32")
    with context(), reference_ops() if ops == "reference" else contextlib.nullcontext():
        traced = jax.jit(jax.value_and_grad(loss)).trace(trained, others, images, labels, jax.random.key(0))
    assert traced.out_info[0].shape == ()


@pytest.mark.parametrize(
    "network",
    ["instance norm, patch norm, shifted windows", *[pytest.param(name, marks=pytest.mark.long) for name in list(NETWORKS)[:2]]],
)
def test_gradients_inside_shard_map_are_those_of_one_device(network):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{Path(__file__).parent}",
    }
    done = subprocess.run([sys.executable, __file__, network], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) < 1e-4


def compare_with_one_device(network):
    """Returns the largest difference of gradients, relative to the largest gradient of each parameter."""
    options = NETWORKS[network]
    if options.get("norm_name") == "batch":
        options = {**options, "norm_name": "instance"}  # a batch norm has other statistics on each device
    trained, others, loss = network_and_loss(options, (2, 64, 32, 1))
    images = jax.random.normal(jax.random.key(1), (2, 64, 32, 1))
    labels = jnp.zeros((2, 64, 32), jnp.int32).at[0, 10:30, 5:20].set(1).at[1, 40:50, 8:30].set(1)
    mesh = jax.make_mesh((2,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))

    def mean_of_samples(trained, others, images, labels):
        """Returns the mean of the losses of all samples, each computed alone, as each device computes it."""
        pairs = zip(jnp.split(images, 2), jnp.split(labels, 2))
        return sum(loss(trained, others, image, label) for image, label in pairs) / 2

    def on_devices(trained, others, images, labels):
        return jax.lax.pmean(loss(trained, others, images, labels), "device")

    sharded = jax.shard_map(
        jax.value_and_grad(on_devices), mesh=mesh, in_specs=(P(), P(), P("device"), P("device")), out_specs=P()
    )
    results = [jax.jit(f)(trained, others, images, labels) for f in (jax.value_and_grad(mean_of_samples), sharded)]
    values = [jax.tree.leaves(result) for result in results]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(*(map(np.asarray, leaves) for leaves in values)))


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    print(json.dumps(compare_with_one_device(sys.argv[1])))
