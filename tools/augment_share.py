"""Times nnU-Net's augmentation of a batch on the device beside the trainer's step for the same batch, on the default device.

    python -m tools.augment_share                       # 4 channels, crops of 128³, 48 features, bfloat16

The two programs alternate, and each sample draws its own random parameters, as in a run. The figures are the median of the milliseconds
and, in brackets, percentiles 5 and 95. The time of the augmentation depends on which transforms are drawn.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from swinunetr_jax import SwinUNETRConfig, Task, console
from swinunetr_jax.runtime.sharding import device_mesh
from swinunetr_jax.runtime.strategies import JitStrategy
from swinunetr_jax.training.augmentation import device_augmentation
from swinunetr_jax.training.config import Optim
from swinunetr_jax.training.recipes.brats21 import RECIPE as BRATS
from swinunetr_jax.training.step import Training
from tools.augment_benchmark import LABELS, augmentation


@dataclass
class Options:
    """The batch and the network."""

    channels: int = 4
    size: int = 128
    """Edge length of the crops."""
    batch: int = 1
    feature_size: int = 48
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    turns: int = 60


def main(options: Options) -> None:
    devices = jax.devices()[:1]
    strategy = JitStrategy(device_mesh(options.batch, 1, devices))
    config = SwinUNETRConfig(in_channels=options.channels, out_channels=4, feature_size=options.feature_size, dtype=options.dtype)
    task = Task.classes(len(LABELS), channels=tuple(f"channel {i}" for i in range(options.channels)))
    training = Training(config, task, BRATS.loss, Optim(), 1000, 0)
    step = training.compile(strategy)
    augmenter = augmentation(options.size)
    augment = device_augmentation(BRATS, task, augmenter, strategy)
    state = strategy.replicate(jax.tree.map(np.asarray, training.init(training.random_weights())))
    flags = strategy.stop_flags(False)

    def batch(number: int) -> Any:
        rng = np.random.default_rng(number)
        shape = (options.batch, *augmenter.source_size)
        arrays = {
            "image": rng.standard_normal((*shape, options.channels)).astype(np.float16),
            "label": rng.choice(np.array(LABELS, np.uint8), shape, p=(0.9, 0.05, 0.03, 0.02)),
            "sample": np.arange(number * options.batch, (number + 1) * options.batch, dtype=np.int32),
        }
        return strategy.shard_batch(arrays)

    def timed(run: Callable[[], Any]) -> tuple[Any, float]:
        started = time.perf_counter()
        result = jax.block_until_ready(run())
        return result, (time.perf_counter() - started) * 1e3

    sources = [batch(number) for number in range(4)]
    milliseconds: dict[str, list[float]] = {"augmentation": [], "step": []}
    for turn in range(options.turns + 3):
        source = sources[turn % len(sources)]
        numbers = jnp.arange(turn * options.batch, (turn + 1) * options.batch, dtype=jnp.int32)
        source = source | {"sample": jax.device_put(numbers, source["sample"].sharding)}
        sample, spent = timed(lambda source=source: augment(source))
        (state, _), took = timed(lambda state=state, sample=sample: step(state, sample, flags))
        if turn >= 3:  # the first turns compile
            milliseconds["augmentation"].append(spent)
            milliseconds["step"].append(took)
    for name, values in milliseconds.items():
        low, middle, high = np.percentile(values, (5, 50, 95))
        print(f"{name}: {middle:.2f} ms ({low:.2f}–{high:.2f}), mean {np.mean(values):.2f} ms")
    share = np.mean(milliseconds["augmentation"]) / np.mean(milliseconds["step"])
    print(
        f"{devices[0].device_kind}, batch {options.batch}, {options.dtype}: the augmentation takes {share:.1%} of the step's time"
    )


if __name__ == "__main__":
    console.configure_streams()
    main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
