"""Layer-wise decay of the learning rate: the closer a layer of Swin UNETR is to the input, the smaller are its updates.

The decay is that of BEiT (Bao et al. 2021, https://arxiv.org/abs/2106.08254), where each group of layers has the learning rate of the next
one times a constant. Pre-trained layers near the input then change little, and the new output layer trains at the full rate.
"""

import re
from typing import cast

import optax

from swinunetr_jax.weights.params import Weights

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
        ValueError: a Swin UNETR has no weight of this name.
    """
    for group, pattern in enumerate(GROUPS):
        if re.match(pattern, name):
            return decay ** (len(GROUPS) - 1 - group)
    raise ValueError(f"a Swin UNETR has no weight {name}")


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Returns a transformation without state that multiplies the update of each weight, in a dict by dotted name, by its `layer_scale`.

    After AdamW it also scales the weight decay, which AdamW multiplies by the learning rate.
    """

    def scale(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        by_name = cast(Weights, updates)  # optax declares a tree of any kind, and the trainer's is this dict
        return {
            name: update if isinstance(update, optax.MaskedNode) else update * layer_scale(name, decay)
            for name, update in by_name.items()  # a weight that the objective does not train has a `MaskedNode`
        }

    return optax.stateless(scale)
