"""Layer-wise decay of the learning rate: the closer a layer of Swin UNETR is to the input, the smaller are its updates.

The decay is that of BEiT (Bao et al. 2021, https://arxiv.org/abs/2106.08254), where each group of layers has the learning rate of the next
one times a constant. Pre-trained layers near the input then change little, and the new output layer trains at the full rate.
"""

import re
from typing import TypeVar

import jax
import optax

from swinunetr_jax.errors import InputError
from swinunetr_jax.parameters.select import name_of

Tree = TypeVar("Tree")

# The groups of layers from the input to the output, as patterns of the names of weights. encoder2 receives the patch embedding, encoder3,
# encoder4 and encoder10 the results of stages 0, 1 and 3. The own parameters of an objective are used after the network.
GROUPS = (
    r"swin\.patch_embed\.|encoder[12]\.",
    r"swin\.(stages|convs)\.0\.|encoder3\.",
    r"swin\.(stages|convs)\.1\.|encoder4\.",
    r"swin\.(stages|convs)\.2\.",
    r"swin\.(stages|convs)\.3\.|encoder10\.",
    r"decoder[1-5]\.|out\.|objective\.",
)


def layer_scale(name: str, decay: float) -> float:
    """Returns the factor of the learning rate of a weight: `decay` to the power of the number of groups after that of the weight.

    Args:
        name: the dotted name of the weight, such as "swin.stages.0.blocks.1.norm1.scale".
        decay: the factor between neighbouring groups.

    Raises:
        InputError: a Swin UNETR has no weight of this name.
    """
    for group, pattern in enumerate(GROUPS):
        if re.match(pattern, name):
            return decay ** (len(GROUPS) - 1 - group)
    raise InputError(f"a Swin UNETR has no weight {name}: layer-wise rates are for the weights of a Swin UNETR.")


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Returns a transformation without state that multiplies the update of each weight by its `layer_scale`.

    After AdamW it also scales the weight decay, which AdamW multiplies by the learning rate.

    Args:
        decay: the factor between neighbouring groups, above 0 and at most 1. The updates may be an `nnx.State` or a dict by name.

    Raises:
        InputError: `decay` is outside of this range, or (in an update) a Swin UNETR has no weight of some name.
    """
    if not 0 < decay <= 1:
        raise InputError(f"`decay` must be above 0 and at most 1, got {decay!r}.")

    def scale(updates: Tree, _: object) -> Tree:
        return jax.tree_util.tree_map_with_path(lambda path, update: update * layer_scale(name_of(path), decay), updates)

    return optax.stateless(scale)
