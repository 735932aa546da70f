"""The names that other trainers give to the tensors of a Swin UNETR, and MONAI's names for the same tensors.

A name consists of a prefix that the trainer added (`module.`, `model.`, `ema.`, …) and a name within the network. The rules of
`FOREIGN_NAME_RULES` turn the latter into MONAI's name.
"""

import re
from collections.abc import Iterable

ANCHOR = "swinViT.patch_embed.proj.weight"  # every network has exactly one tensor of this name

# The name within the network starts at the first of these parts.
_PART = re.compile(
    r"(?P<prefix>(?:[^.]+\.)*?)"
    r"(?:swinViT\.|swin_vit\.|encoder\.(?:patch_embed|layers[1-4]c?)\.|patch_embed\.|layers[1-4]c?\.\d"
    r"|encoder(?:1|2|3|4|10)\.|decoder[1-5]\.|out\.conv\.)"
)
_WITHIN_NETWORK = re.compile(r"(swinViT|encoder\d+|decoder\d+|out)\.")

# These are patterns of names that MONAI's network does not have, but files of self-supervised training and of tools do, with their
# replacements. The replacement is empty for a tensor that is not part of the network.
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
# The output layer of a file with such names reconstructs images instead of segmenting them.
_RECONSTRUCTION = re.compile(r"encoder\.layers1\.0\.0\.")


def prefix_of(name: str) -> str | None:
    """Returns the prefix that a trainer added to a name of a Swin UNETR, such as "module." or "", or None for any other name."""
    match = _PART.match(name)
    return match["prefix"] if match else None


def to_monai_name(name: str) -> str:
    """Returns MONAI's name for a name without prefix, or "" for a tensor that is not part of the network."""
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name


def is_within_network(name: str) -> bool:
    """Returns whether a name in MONAI's form belongs to a module of the network, even if MONAI's network has no such tensor."""
    return _WITHIN_NETWORK.match(name) is not None


def is_reconstruction(names: Iterable[str]) -> bool:
    """Returns whether these are the names of a network that was trained to reconstruct images."""
    return any(_RECONSTRUCTION.match(name) for name in names)
