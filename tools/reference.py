"""MONAI's Swin UNETR as the reference: built from our configuration fields, with every intermediate under our names.

It needs torch and MONAI, but neither jax nor our library, so that it also runs with old versions of MONAI. The arrays that functions
return have channels last.
"""

import inspect
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import monai
import numpy as np
import torch
from monai.networks.nets.swin_unetr import SwinUNETR

from tools import golden_weights

VERSIONS = {"monai": monai.__version__, "torch": torch.__version__}
if find_spec("nvsubquadratic") is not None:
    VERSIONS["nvsubquadratic"] = version("nvsubquadratic")
# "merging" in MONAI <= 1.4 is our "legacy"; since MONAI 1.5 "merging" concatenates the neighbours in another order.
OLD = tuple(map(int, monai.__version__.split(".")[:2])) < (1, 5)
FIXED_IN_OLD = {"qkv_bias": True, "mlp_ratio": 4.0, "patch_norm": False, "use_flash_attention": False}


class Unsupported(ValueError):
    """The installed MONAI has no such network; the message names the versions that have it."""


def network(fields: Mapping[str, Any]) -> SwinUNETR:
    """Returns MONAI's network for our configuration fields, in evaluation mode.

    Raises:
        Unsupported: the installed MONAI cannot build it.
    """
    fields = {name: value for name, value in fields.items() if name not in ("dtype", "param_dtype")}
    dims = fields.get("spatial_dims", 3)
    mode = fields.get("downsample", "merging")
    if mode == "legacy" and not OLD:
        raise Unsupported(
            f"`downsample` 'legacy' is what MONAI <= 1.4 computes as 'merging', and MONAI {monai.__version__} is installed: "
            "install MONAI <= 1.4 for this comparison."
        )
    if mode == "merging" and OLD and dims == 3:
        raise Unsupported(
            f"`downsample` 'merging' is the order of MONAI >= 1.5, and MONAI {monai.__version__} is installed: install "
            "MONAI >= 1.5 for this comparison."
        )
    fields["downsample"] = "merging" if mode == "legacy" else mode
    groups = fields.pop("num_groups", None)
    if groups is not None:
        fields["norm_name"] = ("group", {"num_groups": groups})
    parameters = inspect.signature(SwinUNETR).parameters
    if any(fields.get("hyena_stages") or ()) and ("hyena_stages" not in parameters or find_spec("nvsubquadratic") is None):
        raise Unsupported("Hyena stages need MONAI >= 1.6 and nvsubquadratic: install both for this comparison.")
    if OLD:
        fields["img_size"] = (64,) * dims  # required but not used
    for name in set(fields) - set(parameters):
        value, fixed = fields.pop(name), {"window_size": [7] * dims, **FIXED_IN_OLD}[name]
        if value != fixed and not (name == "window_size" and set(np.ravel(value)) == {7}):
            raise Unsupported(f"MONAI {monai.__version__} has no `{name}`, it is always {fixed}: got {value}.")
    return SwinUNETR(**fields).eval()


def fill(net: SwinUNETR, seed: int) -> None:
    """Fills the network with weights computed from a seed, which differ from the initial ones in every tensor."""
    weights = golden_weights.state({name: value.shape for name, value in net.state_dict().items()}, seed)
    indices = {name: value for name, value in net.state_dict().items() if name.endswith(golden_weights.COMPUTED)}
    net.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()} | indices, strict=True)


def channels_first(x: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.as_tensor(np.moveaxis(x, -1, 1).copy()).to(dtype)


def channels_last(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x.detach().cpu().numpy(), 1, -1))


def record(net: SwinUNETR, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """Returns the logits [b, c, *grid], and every intermediate by its name in our `SwinUNETR.forward`, with channels last."""
    intermediates: dict[str, np.ndarray] = {}
    handles = []
    for module, name, has_channels_first in points(net):

        def keep(
            module: Any, inputs: Any, output: torch.Tensor, name: str = name, has_channels_first: bool = has_channels_first
        ) -> None:
            intermediates[name] = channels_last(output) if has_channels_first else output.detach().cpu().numpy().copy()

        handles.append(module.register_forward_hook(keep))

    def keep_hidden(module: Any, inputs: Any, outputs: list[torch.Tensor]) -> None:
        intermediates.update({f"hidden{index}": channels_last(output) for index, output in enumerate(outputs)})

    handles.append(net.swinViT.register_forward_hook(keep_hidden))
    try:
        return net(x), intermediates
    finally:
        for handle in handles:
            handle.remove()


def points(net: SwinUNETR) -> Iterator[tuple[torch.nn.Module, str, bool]]:
    """Yields modules, our names for their outputs, and whether the outputs have channels first."""
    yield net.swinViT.pos_drop, "swin.patch_embed", True
    for stage in range(4):
        layer = getattr(net.swinViT, f"layers{stage + 1}")[0]
        if getattr(net.swinViT, "use_v2", False):
            yield getattr(net.swinViT, f"layers{stage + 1}c")[0], f"swin.stage{stage}.conv", True
        for index, block in enumerate(layer.blocks):
            yield block, f"swin.stage{stage}.block{index}", False
        yield layer, f"swin.stage{stage}", True
    for name in ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10"):
        yield getattr(net, name), name, True
    for name in ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1"):
        yield getattr(net, name), name, True
    yield net.out, "logits", True
