"""Another network: a small U-Net of plain flax layers."""

from dataclasses import replace

import jax
from flax import nnx
from jax import numpy as jnp

from swinunetr_jax.training.recipes.phantom import RECIPE as PHANTOM


class UNet(nnx.Module):
    """A U-Net with two resolutions and one skip connection: [b, x, y, z, in_channels] -> [b, x, y, z, out_channels]."""

    def __init__(self, in_channels, out_channels, *, rngs):
        self.fine = nnx.Conv(in_channels, 16, (3, 3, 3), rngs=rngs)
        self.down = nnx.Conv(16, 32, (2, 2, 2), strides=2, rngs=rngs)
        self.coarse = nnx.Conv(32, 32, (3, 3, 3), rngs=rngs)
        self.up = nnx.ConvTranspose(32, 16, (2, 2, 2), strides=2, rngs=rngs)
        self.norms = nnx.List([nnx.GroupNorm(width, num_groups=4, rngs=rngs) for width in (16, 32)])
        self.out = nnx.Conv(32, out_channels, (1, 1, 1), rngs=rngs)

    def __call__(self, x, key=None, train=False):
        skip = jax.nn.relu(self.norms[0](self.fine(x)))
        deep = jax.nn.relu(self.norms[1](self.coarse(self.down(skip))))
        return self.out(jnp.concatenate([self.up(deep), skip], axis=-1))


RECIPE = replace(PHANTOM, network=UNet)
