"""The configuration of a Swin UNETR: immutable, checked on construction, compared by value, and convertible to and from a dict.

Names, defaults and limits of the arguments are those of `monai.networks.nets.SwinUNETR`, so that MONAI's arguments work unchanged.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from numbers import Real
from typing import Any

import numpy as np

from swinunetr_jax.errors import InputError
from swinunetr_jax.fields import is_int
from swinunetr_jax.hyena_options import HyenaOptions, check_variant, wants_hyena

DOWNSAMPLE_MODES = ("legacy", "merging", "mergingv2")
NORM_NAMES = ("instance", "batch", "group")
DTYPES = ("float32", "bfloat16", "float16", "float64")
STAGES = 4
SIZE_MULTIPLE = 32  # patch embedding and four patch mergings halve every axis five times


@dataclass(frozen=True, kw_only=True)
class SwinUNETRConfig(HyenaOptions):
    """The options of a Swin UNETR. Those of Hyena stages are described in `HyenaOptions`.

    Args:
        in_channels: input channels (modalities).
        out_channels: output channels (regions or classes).
        spatial_dims: 2 or 3.
        feature_size: channels at full resolution; a multiple of 12.
        depths: Swin blocks per stage, four stages.
        num_heads: attention heads per stage; each must divide its stage's width `feature_size * 2**stage`.
        window_size: attention window, an int or one per axis; stored as a tuple.
        qkv_bias: whether the query, key and value projection has a bias.
        mlp_ratio: hidden width of the MLP divided by the stage's width.
        norm_name: norm of the convolutional blocks: "instance", "batch" or ("group", {"num_groups": n}).
        num_groups: groups of the group norm, if `norm_name` is "group".
        patch_norm: whether a LayerNorm follows the patch embedding.
        normalize: whether a LayerNorm without parameters is applied to the encoder's outputs before the decoder reads them.
        downsample: order of the neighbours in patch merging: "legacy" (all published weights; "merging" in MONAI <= 1.4), "merging"
            (MONAI >= 1.5) or "mergingv2".
        use_v2: whether a residual convolution block precedes each stage.
        drop_rate, attn_drop_rate, dropout_path_rate: rates of dropout, attention dropout and stochastic depth, which apply only if the
            network is called with a key.
        use_checkpoint: whether to recompute Swin blocks and convolution blocks in the backward pass, which saves memory and costs time.
        use_flash_attention: accepted for compatibility with MONAI and ignored, because the fastest implementation is always used.
        dtype: type of the computation ("float32", "bfloat16", …); statistics and softmax are computed in at least float32.
        param_dtype: type in which the parameters are stored.
        patch_size: 2, the only possible value, because the last decoder upsamples by a fixed factor of 2.

    Raises:
        InputError: an argument has an impossible value; the message names it, its value and what was expected.
    """

    in_channels: int
    out_channels: int
    spatial_dims: int = 3
    feature_size: int = 24
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: tuple[int, ...] | int = 7
    qkv_bias: bool = True
    mlp_ratio: float = 4.0
    norm_name: Any = "instance"  # a string or MONAI's pair (name, options) is accepted, and the string is stored
    num_groups: int | None = None
    patch_norm: bool = False
    normalize: bool = True
    downsample: str = "merging"
    use_v2: bool = False
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    dropout_path_rate: float = 0.0
    use_checkpoint: bool = False
    use_flash_attention: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    patch_size: InitVar[int | tuple[int, ...]] = 2

    def __post_init__(self, patch_size: Any) -> None:
        if set(_as_tuple("patch_size", patch_size)) != {2}:
            raise InputError(f"`patch_size` must be 2, got {patch_size}: the last decoder upsamples by a fixed factor of 2.")
        for name in ("in_channels", "out_channels"):
            if not is_int(getattr(self, name)) or getattr(self, name) < 1:
                raise InputError(f"`{name}` must be a positive integer, got {getattr(self, name)!r}.")
            self._set(name, int(getattr(self, name)))
        if self.spatial_dims not in (2, 3):
            raise InputError(f"`spatial_dims` must be 2 or 3, got {self.spatial_dims!r}.")
        self._set("spatial_dims", int(self.spatial_dims))
        if not is_int(self.feature_size) or self.feature_size < 12 or self.feature_size % 12:
            raise InputError(
                f"`feature_size` must be a multiple of 12, got {self.feature_size!r}; published models use 12, 24 and 48."
            )
        self._set("feature_size", int(self.feature_size))
        if self.downsample not in DOWNSAMPLE_MODES:
            raise InputError(f"`downsample` must be one of {', '.join(DOWNSAMPLE_MODES)}, got {self.downsample!r}.")
        self._check_hyena()
        self._check_stages()
        self._check_norm()
        self._check_rates()
        for name in ("dtype", "param_dtype"):
            self._set(name, _dtype_name(name, getattr(self, name)))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def _check_stages(self) -> None:
        for name in ("depths", "num_heads"):
            values = _as_tuple(name, getattr(self, name))
            if len(values) != STAGES or min(values) < 1:
                raise InputError(f"`{name}` must hold {STAGES} positive integers, one per stage, got {getattr(self, name)!r}.")
            self._set(name, values)
        for stage, heads in enumerate(self.num_heads):
            if not self.hyena[stage] and self.stage_width(stage) % heads:
                raise InputError(
                    f"`num_heads` of stage {stage + 1} must divide the stage's width: {self.stage_width(stage)} channels "
                    f"(`feature_size` {self.feature_size} * {2**stage}) are not divisible by {heads} heads."
                )
        window = _as_tuple("window_size", self.window_size)
        window = window * self.spatial_dims if len(window) == 1 else window
        if len(window) != self.spatial_dims or min(window) < 1:
            raise InputError(
                f"`window_size` must be a positive integer or {self.spatial_dims} of them, got {self.window_size!r}."
            )
        self._set("window_size", window)

    def _check_norm(self) -> None:
        norm, groups = self.norm_name, self.num_groups
        if isinstance(norm, (tuple, list)) and len(norm) == 2 and isinstance(norm[1], Mapping):
            norm, options = norm[0], dict(norm[1])
            groups = options.pop("num_groups", groups)
            if options:
                raise InputError(f"`norm_name` takes only the option `num_groups`, got {', '.join(map(repr, options))}.")
        norm = norm.lower() if isinstance(norm, str) else norm
        if norm not in NORM_NAMES:
            raise InputError(
                f"`norm_name` must be 'instance', 'batch' or ('group', {{'num_groups': n}}), got {self.norm_name!r}."
            )
        if (norm == "group") != (groups is not None):
            raise InputError(f"`num_groups` is valid only with the group norm: got norm {norm!r} and `num_groups` {groups!r}.")
        if groups is not None and (not is_int(groups) or groups < 1 or self.feature_size % groups):
            raise InputError(f"`num_groups` must divide `feature_size` {self.feature_size}, got {groups!r}.")
        self._set("norm_name", norm)
        self._set("num_groups", None if groups is None else int(groups))

    def _check_rates(self) -> None:
        if not _is_real(self.mlp_ratio) or not self.mlp_ratio * self.feature_size >= 1:
            raise InputError(f"`mlp_ratio` must be a finite number of at least 1 / `feature_size`, got {self.mlp_ratio!r}.")
        self._set("mlp_ratio", float(self.mlp_ratio))
        for name in ("drop_rate", "attn_drop_rate", "dropout_path_rate"):
            value = getattr(self, name)
            if not _is_real(value) or not 0 <= value < 1:
                raise InputError(f"`{name}` must be at least 0 and less than 1, got {value!r}.")
            self._set(name, float(value))

    @property
    def window(self) -> tuple[int, ...]:
        """The attention window, with a size for each axis."""
        assert isinstance(self.window_size, tuple)  # __post_init__ stores a tuple
        return self.window_size

    def stage_width(self, stage: int) -> int:
        """Returns the number of channels in a stage 0 … 3, or for 4 the number of channels of the encoder's last output."""
        return self.feature_size * 2**stage

    def check_spatial(self, shape: tuple[int, ...]) -> None:
        """Raises InputError unless the network accepts a volume of this spatial shape."""
        if len(shape) != self.spatial_dims:
            raise InputError(f"expected {self.spatial_dims} spatial axes, got {len(shape)} in shape {tuple(shape)}.")
        wrong = [axis for axis, size in enumerate(shape) if size < 1 or size % SIZE_MULTIPLE]
        if wrong:
            good = tuple(max(1, -(-size // SIZE_MULTIPLE)) * SIZE_MULTIPLE for size in shape)
            raise InputError(
                f"every spatial size must be a multiple of {SIZE_MULTIPLE}: axes {wrong} of {tuple(shape)} are not; the next valid size "
                f"is {good}."
            )
        if self.norm_name == "instance" and all(size == SIZE_MULTIPLE for size in shape):
            good = (*shape[:-1], 2 * SIZE_MULTIPLE)
            raise InputError(
                f"a volume of {tuple(shape)} is one voxel at 1/{SIZE_MULTIPLE} resolution, where an instance norm has no variance; "
                f"the smallest valid size is {good}."
            )

    def replace(self, **changes: Any) -> "SwinUNETRConfig":
        """Returns a checked copy with some fields changed.

        `use_hyena` alone changes all stages. The options of Hyena stages are not kept in a copy without such a stage.
        """
        if "use_hyena" in changes:
            changes = {"hyena_stages": None, **changes}
        values = {**self.to_dict(), **changes}
        if self.use_hyena and not wants_hyena(values.get("use_hyena"), values.get("hyena_stages")):
            values = {name: value for name, value in values.items() if name in changes or not name.startswith("hyena_")}
        return SwinUNETRConfig.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values, which `from_dict` reads. Those of Hyena stages are absent if there is no such stage."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self._values().items()}

    def __repr__(self) -> str:
        return f"SwinUNETRConfig({', '.join(f'{name}={value!r}' for name, value in self._values().items())})"

    def _values(self) -> dict[str, Any]:
        """Returns the fields by name. Those of Hyena stages come last, and are absent if there is no such stage."""
        hyena = [field.name for field in dataclasses.fields(HyenaOptions)]
        others = [field.name for field in dataclasses.fields(self) if field.name not in hyena]
        return {name: getattr(self, name) for name in (*others, *(hyena if self.use_hyena else []))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SwinUNETRConfig":
        """Returns the configuration that the result of `to_dict` describes. Raises InputError for unknown or missing names."""
        values = dict(values)
        if "norm_name" in values and values["norm_name"] != "group":
            values["num_groups"] = None if isinstance(values["norm_name"], str) else values.get("num_groups")
        known = {field.name for field in dataclasses.fields(cls)} | {"patch_size"}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(
                f"unknown configuration field {', '.join(map(repr, unknown))}; the known fields are "
                f"{', '.join(sorted(name for name in known if not name.startswith('hyena_')))} and the hyena options."
            )
        missing = sorted({"in_channels", "out_channels"} - set(values))
        if missing:
            raise InputError(f"the configuration lacks {', '.join(map(repr, missing))}.")
        return cls(**values)

    @classmethod
    def brats21(cls, **changes: Any) -> "SwinUNETRConfig":
        """Returns the paper's network for BraTS 2021: inputs FLAIR, T1ce, T1, T2; outputs tumour core, whole tumour, enhancing tumour."""
        return cls(**{"in_channels": 4, "out_channels": 3, "feature_size": 48, **changes})

    @classmethod
    def btcv(cls, **changes: Any) -> "SwinUNETRConfig":
        """Returns the network for abdominal CT (BTCV): one input channel; outputs background and 13 organs."""
        return cls(**{"in_channels": 1, "out_channels": 14, "feature_size": 48, **changes})

    @classmethod
    def hyena_variant(cls, name: str, **fields: Any) -> "SwinUNETRConfig":
        """Returns a published network with Hyena stages: "HHHH", "HAHA" or "HHAA", an H for a Hyena stage, an A for window attention.

        `feature_size` is 48 unless it is given, as in MONAI's `HyenaNDUNETR.get_variant`.
        """
        check_variant(name)
        return cls(**{"feature_size": 48, **fields, "hyena_stages": name})


def _is_real(value: Any) -> bool:
    """Returns whether the value is a finite real number of Python or numpy."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _as_tuple(name: str, value: Any) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) or (isinstance(value, np.ndarray) and value.ndim == 1) else (value,)
    if not values or not all(is_int(item) for item in values):
        raise InputError(f"`{name}` must be an integer or a sequence of integers, got {value!r}.")
    return tuple(map(int, values))


def _dtype_name(name: str, value: Any) -> str:
    text = value if isinstance(value, str) else getattr(value, "__name__", None) or getattr(value, "name", None) or str(value)
    if text not in DTYPES:
        raise InputError(f"`{name}` must be one of {', '.join(DTYPES)}, got {value!r}.")
    return text
