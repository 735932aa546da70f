"""The options of HyenaND stages, which replace window attention by a global convolution, with the checks of their values.

Names, defaults and limits are those of MONAI 1.6 (`SwinUNETR(use_hyena=…, hyena_stages=…, …)`). `SwinUNETRConfig` inherits the fields.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from swinunetr_jax.errors import InputError
from swinunetr_jax.fields import is_int, is_number

# The variants that were published with HyenaND: an H for a Hyena stage, an A for a stage with window attention.
HYENA_VARIANTS = ("HHHH", "HAHA", "HHAA")
PADDINGS, GRID_TYPES = ("circular", "zero"), ("single", "double")
STAGE_COUNT = 4


@dataclass(frozen=True, kw_only=True)
class HyenaOptions:
    """The options of HyenaND stages.

    Args:
        use_hyena: whether stages are Hyena stages: all four, unless `hyena_stages` says which.
        hyena_stages: four booleans, whether each stage is a Hyena stage, or four letters such as "HHAA", an H for a Hyena stage, an A for
            one with window attention; stored as booleans. It takes precedence over `use_hyena`.
        hyena_kernel_size: size of the short convolution of queries, keys and values; odd.
        hyena_kernel_mlp_dim: width of the network that computes the global kernel from coordinates.
        hyena_kernel_layers: its number of sine layers; 1 counts as 2, as in MONAI.
        hyena_mask_max_attenuation: value of the widest permitted Gaussian mask at coordinate 1, greater than 0 and less than 1.
        hyena_fft_padding: "circular", where the convolution is periodic, or "zero", where there are zeros beyond the grid.
        hyena_grid_type: "single", a kernel of the grid's size, or "double", a kernel of twice that size, for "zero" only.
        hyena_use_chunked_fft: whether the global convolution is computed for at most 128 channels at a time, which takes less memory; for
            "zero" only, as in MONAI.
        hyena_use_fft_short_conv: whether the short convolution is computed by FFT. The result is the same. PyTorch needs it for large
            volumes; here it takes more time than the direct sum on a CPU.
        hyena_omega_0: frequency of the first sine layer, which the initial weights depend on.
        hyena_l_cache: number of grid points between the coordinates 0 and 1 of the kernel, half as many for the single grid. In spite of
            its name the result depends on it.
        hyena_short_conv_fft_chunks: number of channels at a time of the short convolution by FFT; 0 for all.
    """

    use_hyena: bool = False
    hyena_stages: tuple[bool, ...] | str | None = None
    hyena_kernel_size: int = 3
    hyena_kernel_mlp_dim: int = 32
    hyena_kernel_layers: int = 3
    hyena_mask_max_attenuation: float = 0.95
    hyena_fft_padding: str = "circular"
    hyena_grid_type: str = "single"
    hyena_use_chunked_fft: bool = False
    hyena_use_fft_short_conv: bool = False
    hyena_omega_0: float = 10.0
    hyena_l_cache: int = 32
    hyena_short_conv_fft_chunks: int = 0

    @property
    def hyena(self) -> tuple[bool, ...]:
        """A boolean for each of the four stages, which is True for a Hyena stage."""
        assert not isinstance(self.hyena_stages, str)  # `_check_hyena` stores a tuple
        return self.hyena_stages or (False,) * STAGE_COUNT

    @property
    def hyena_cache(self) -> int:
        """The number of grid points of the kernel's coordinates from 0 to 1, both included."""
        return (self.hyena_l_cache + 1) // 2 if self.hyena_grid_type == "single" else self.hyena_l_cache

    def _check_hyena(self) -> None:
        """Checks the fields, and stores them in one form."""
        for name in ("use_hyena", "hyena_use_chunked_fft", "hyena_use_fft_short_conv"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InputError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
            self._store(name, bool(getattr(self, name)))
        self._check_hyena_stages()
        for name, least in (
            ("hyena_kernel_size", 1),
            ("hyena_kernel_mlp_dim", 1),
            ("hyena_kernel_layers", 1),
            ("hyena_l_cache", 2),
            ("hyena_short_conv_fft_chunks", 0),
        ):
            if not is_int(getattr(self, name)) or getattr(self, name) < least:
                raise InputError(f"`{name}` must be an integer of at least {least}, got {getattr(self, name)!r}.")
            self._store(name, int(getattr(self, name)))
        if self.hyena_kernel_size % 2 == 0:
            raise InputError(f"`hyena_kernel_size` must be odd, so that the grid keeps its size, got {self.hyena_kernel_size}.")
        for name, choices in (("hyena_fft_padding", PADDINGS), ("hyena_grid_type", GRID_TYPES)):
            if getattr(self, name) not in choices:
                raise InputError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if self.hyena_fft_padding == "circular" and (self.hyena_grid_type != "single" or self.hyena_use_chunked_fft):
            raise InputError(
                "`hyena_fft_padding` 'circular' needs `hyena_grid_type` 'single' and no `hyena_use_chunked_fft`: set the padding to "
                "'zero', or change these two."
            )
        if self.hyena_cache < 2:
            raise InputError(
                f"`hyena_l_cache` must be at least 3 with `hyena_grid_type` 'single', got {self.hyena_l_cache}: the coordinates of the "
                "kernel need two points."
            )
        for name, below in (("hyena_mask_max_attenuation", 1.0), ("hyena_omega_0", math.inf)):
            value = getattr(self, name)
            if not is_number(value) or not 0 < value < below:
                limit = "" if below == math.inf else f" and less than {below:g}"
                raise InputError(f"`{name}` must be a finite number greater than 0{limit}, got {value!r}.")
            self._store(name, float(value))
        if not self.use_hyena:
            self._check_unused()

    def _check_unused(self) -> None:
        """Checks that no field was set that has no effect on a network without a Hyena stage."""
        self._store("hyena_stages", None)
        for field in fields(HyenaOptions):
            if getattr(self, field.name) != field.default:
                raise InputError(
                    f"`{field.name}` is {getattr(self, field.name)!r}, but the network has no Hyena stage: leave it out, or set "
                    "`hyena_stages`, for example to 'HHAA'."
                )

    def _check_hyena_stages(self) -> None:
        stages = (self.use_hyena,) * STAGE_COUNT if self.hyena_stages is None else self.hyena_stages
        if isinstance(stages, str) and set(stages.upper()) <= set("HA"):
            stages = [letter == "H" for letter in stages.upper()]
        if (
            not isinstance(stages, (tuple, list, np.ndarray))
            or len(stages) != STAGE_COUNT
            or not all(isinstance(stage, (bool, np.bool_)) or (is_int(stage) and stage in (0, 1)) for stage in stages)
        ):
            raise InputError(
                f"`hyena_stages` must be {STAGE_COUNT} booleans, or as many letters H and A, such as 'HHAA', one for each stage, got "
                f"{self.hyena_stages!r}."
            )
        self._store("hyena_stages", tuple(map(bool, stages)))
        self._store("use_hyena", any(stages))

    def _store(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen


def wants_hyena(use_hyena: Any, stages: Any) -> bool:
    """Returns whether these values of `use_hyena` and `hyena_stages`, which need not be valid, ask for a Hyena stage."""
    if stages is None:
        return bool(use_hyena)
    return not isinstance(stages, (str, tuple, list, np.ndarray)) or any(stage not in (False, "A", "a") for stage in stages)


def check_variant(name: str) -> None:
    """Raises InputError unless this is the name of a published variant, in capital or small letters."""
    if not isinstance(name, str) or name.upper() not in HYENA_VARIANTS:
        raise InputError(
            f"the Hyena variant must be one of {', '.join(HYENA_VARIANTS)}, got {name!r}: for any other choice set `hyena_stages`, and "
            "without a Hyena stage use SwinUNETRConfig itself."
        )
