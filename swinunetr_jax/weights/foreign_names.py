"""Names of a Swin UNETR's tensors in files of other trainers, and MONAI's names for them.

A name is a prefix that the trainer added (`module.`, `model.`, `ema.`, …) and a name within the network. The second is brought to
MONAI's by the fixed rules of `FOREIGN_NAME_RULES`.
"""

import re
from collections.abc import Iterable

ANCHOR = "swinViT.patch_embed.proj.weight"  # every network has it, and only once

# Where the name within the network starts: at the first of these parts.
_PART = re.compile(
    r"(?P<prefix>(?:[^.]+\.)*?)"
    r"(?:swinViT\.|swin_vit\.|encoder\.(?:patch_embed|layers[1-4]c?)\.|patch_embed\.|layers[1-4]c?\.\d"
    r"|encoder(?:1|2|3|4|10)\.|decoder[1-5]\.|out\.conv\.)"
)
_OWN = re.compile(r"(swinViT|encoder\d+|decoder\d+|out)\.")

# Names in files of self-supervised training and of tools, none of which is a name of MONAI's network. An empty replacement: the tensor
# is not a part of the network.
FOREIGN_NAME_RULES = (
    (r"^(rotation_head|contrastive_head|convTrans3d|conv|norm|mask_token)(\..*)?$", ""),
    (r"^encoder\.(mask_token|norm\.(weight|bias))$", ""),
    (r"^(.*\.)?total_(ops|params)$", ""),  # counters that the profiler thop adds to every module
    (r"^encoder\.(layers[1-4])\.0\.0\.", r"swinViT.\1.0."),
    (r"^encoder\.(patch_embed|layers[1-4]c?)\.", r"swinViT.\1."),
    (r"^swin_vit\.", "swinViT."),
    (r"^(patch_embed|layers[1-4]c?)\.", r"swinViT.\1."),
    (r"\.mlp\.fc([12])\.", r".mlp.linear\1."),
)
_RULES = tuple((re.compile(pattern), replacement) for pattern, replacement in FOREIGN_NAME_RULES)
_RECONSTRUCTION = re.compile(r"encoder\.layers1\.0\.0\.")  # such a file's output layer reconstructs images, it does not segment


def prefix_of(name: str) -> str | None:
    """What a trainer put before a name of a Swin UNETR, such as "module." or ""; None for a name of something else."""
    found = _PART.match(name)
    return found["prefix"] if found else None


def to_monai_name(name: str) -> str:
    """MONAI's name for a name without its prefix; "" for a tensor that is not a part of the network."""
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name


def is_of_network(name: str) -> bool:
    """Whether a name (MONAI's) is within a part of the network, known or not."""
    return _OWN.match(name) is not None


def is_reconstruction(names: Iterable[str]) -> bool:
    """Whether these names are those of a network that was trained to reconstruct images."""
    return any(_RECONSTRUCTION.match(name) for name in names)
