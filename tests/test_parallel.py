"""Training on several devices gives the numbers of one. Four CPU devices, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from swinunetr_jax import SwinUNETRConfig, Task, parallel
from swinunetr_jax.losses import Loss

ROOT = Path(__file__).parents[1]
DEVICES, STEPS = 4, 5


@pytest.mark.slow
def test_five_steps_on_several_devices_are_those_of_one():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = json.loads(done.stdout.splitlines()[-1])
    assert len(set(losses["1"])) == STEPS
    for count in ("2", "4"):
        np.testing.assert_allclose(losses[count], losses["1"], rtol=1e-5)


def losses_on(count: int) -> list[float]:
    """Five steps with stochastic depth and an average of the weights."""
    from train import step
    from train.config import Optim

    step.compiler_options = lambda: {"xla_backend_optimization_level": 0}  # compiling takes longer than running
    config = SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), dropout_path_rate=0.2)
    optim = Optim(lr=1e-3, schedule="constant", ema=0.9)
    training = step.Training(config, Task.classes(2), Loss(kind="dice_ce"), optim, STEPS, seed=0)
    mesh = parallel.device_mesh(DEVICES, 1, jax.devices()[:count])
    assert mesh.size == count
    state, run = parallel.replicate(training.init(training.random_weights()), mesh), training.compile(mesh)
    result = []
    for index in range(STEPS):
        rng = np.random.default_rng(index)
        label = (rng.random((DEVICES, 32, 32, 64)) < 0.3).astype(np.uint8)
        image = (rng.normal(size=(*label.shape, 1)) + label[..., None]).astype(np.float32)
        batch = parallel.divide({"image": image, "label": label}, mesh)
        assert len(batch["image"].sharding.device_set) == count
        state, metrics = run(state, batch["image"], batch["label"])
        result.append(float(metrics["loss"]))
    assert len({str(shard.device) for shard in state.params["out.kernel"].addressable_shards}) == count
    return result


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print(json.dumps({str(count): losses_on(count) for count in (1, 2, 4)}))
