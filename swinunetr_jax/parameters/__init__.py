"""Parameters of a network by name: which of them train, at which rate, and adapters of low rank (LoRA).

A name is the path of a parameter in the network with dots, such as "swin.stages.0.blocks.1.attn.qkv.kernel". Patterns are those of
`fnmatch`: `*` stands for any characters, dots included, `?` for one character and `[12]` for one of several.
"""

from swinunetr_jax.parameters.layer_rates import layer_scale, scale_by_layer
from swinunetr_jax.parameters.lora import add_lora, merge_lora
from swinunetr_jax.parameters.select import Selection, label_parameters, parameter_names, select

__all__ = [
    "Selection",
    "add_lora",
    "label_parameters",
    "layer_scale",
    "merge_lora",
    "parameter_names",
    "scale_by_layer",
    "select",
]
