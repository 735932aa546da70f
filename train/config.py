"""The groups of a run's options, such as `Network` and `Optim`. `options.Options` holds them.

Each field is an option of the command line, such as --optim.lr, and is stored in RUN/run.json. Its type is checked in both places.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from swinunetr_jax import InputError, SwinUNETRConfig
from swinunetr_jax.buckets import MAY_BE_MODEL
from swinunetr_jax.registry import SWIN_UNETR, CustomConfig, CustomNetwork, find


@dataclass(frozen=True)
class Network:
    """The network. The arguments after `name` and `settings` are those of SwinUNETRConfig; the channels come from the data."""

    name: str = SWIN_UNETR
    """swin_unetr, or the name of a registered network (see `swinunetr_jax.registry`). The options after --network.settings are those of a
    Swin UNETR."""
    settings: str = "{}"
    """Fields of the configuration of a registered network as a JSON object, such as '{"width": 32}'."""
    feature_size: int = 48
    """Channels at full resolution, a multiple of 12."""
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Transformer blocks of each stage."""
    num_heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    """Attention heads of each stage."""
    window_size: tuple[int, int, int] = (7, 7, 7)
    """Size of the attention windows in tokens."""
    norm_name: Literal["instance", "batch"] = "instance"
    """Normalisation in the convolution blocks."""
    use_v2: bool = False
    """Add a residual convolution block before each stage."""
    downsample: Literal["legacy", "merging", "mergingv2"] = "merging"
    """Order of patch merging; legacy for published weights."""
    drop_rate: float = 0.0
    """Dropout rate of tokens, at least 0 and less than 1."""
    attn_drop_rate: float = 0.0
    """Dropout rate of attention weights, at least 0 and less than 1."""
    dropout_path_rate: float = 0.0
    """Stochastic depth: the rate of the last block."""
    use_checkpoint: bool = False
    """Recompute blocks in the backward pass, which takes less memory and more time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters and statistics stay in float32."""
    hyena_stages: str | None = None
    """Four letters such as HHAA: H for a HyenaND stage (a global convolution), A for a stage with window attention."""
    hyena_kernel_size: int = 3
    """Hyena: size of the short convolution."""
    hyena_kernel_mlp_dim: int = 32
    """Hyena: width of the network that computes the global kernel."""
    hyena_kernel_layers: int = 3
    """Hyena: sine layers of that network."""
    hyena_mask_max_attenuation: float = 0.95
    """Hyena: limit of the masks of the global kernel, above 0 and below 1."""
    hyena_fft_padding: Literal["circular", "zero"] = "circular"
    """Hyena: whether the grid is periodic, or there are zeros beyond it."""
    hyena_grid_type: Literal["single", "double"] = "single"
    """Hyena: whether the global kernel has the size of the grid, or twice that size (for zero padding)."""
    hyena_use_chunked_fft: bool = False
    """Hyena: compute the global convolution in parts, which takes less memory (for zero padding)."""
    hyena_omega_0: float = 10.0
    """Hyena: frequency of the first sine layer."""
    hyena_l_cache: int = 32
    """Hyena: unit of the global kernel's coordinates, in points."""

    @property
    def custom(self) -> CustomNetwork | None:
        """The registered network of this name, or None for a Swin UNETR. Raises InputError if no network has this name."""
        return None if self.name == SWIN_UNETR else find(self.name)

    def config(self, in_channels: int, out_channels: int) -> SwinUNETRConfig:
        """Returns the configuration of a Swin UNETR for these channels."""
        fields = {name: value for name, value in vars(self).items() if name not in REGISTRY_FIELDS}
        return SwinUNETRConfig(in_channels=in_channels, out_channels=out_channels, **fields)

    def custom_config(self, network: CustomNetwork, in_channels: int, out_channels: int) -> CustomConfig:
        """Returns the configuration of a registered network. Raises InputError if the settings are not those of this network."""
        try:
            settings = json.loads(self.settings)
        except ValueError:
            settings = None
        if not isinstance(settings, dict) or settings.keys() & {"in_channels", "out_channels", "network"}:
            raise InputError(
                "`network.settings` must be a JSON object without the channels, which come from the data, such as "
                f"'{{\"width\": 32}}', got {self.settings}."
            )
        return network.config(in_channels, out_channels, **settings)


REGISTRY_FIELDS = ("name", "settings")  # the options of a network that are not those of a Swin UNETR


@dataclass(frozen=True)
class Optim:
    """AdamW and its learning rate."""

    lr: float = 1e-4
    """Highest learning rate."""
    weight_decay: float = 1e-5
    """Decoupled weight decay of AdamW."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the averages of the gradient and of its square."""
    schedule: Literal["cosine", "constant", "polynomial"] = "cosine"
    """Learning rate after the warm-up: it falls to 0 at the last step, except for constant."""
    power: float = 0.9
    """Exponent of the polynomial schedule."""
    warmup: float = 0.0
    """Steps of linear warm-up; a number below 1 is a fraction of all steps."""
    clip: float | None = None
    """Largest global norm of the gradient; a gradient with a larger norm is scaled down to it."""
    layer_decay: float | None = None
    """Factor of the learning rate from each of six groups of layers to the one before it, such as 0.75: a layer near the input of a
    pre-trained network then changes less than one near its output."""
    accumulate: int = 1
    """Number of parts that each batch is split into. They are computed one after another, which takes less memory. The step is the same if
    the loss is the mean of the samples' losses."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999, which is then the network that is validated and saved."""


@dataclass(frozen=True)
class Augment:
    """Random changes of training samples."""

    flips: tuple[int, ...] | None = None
    """Axes to mirror along, each with probability 1/2 (CT: 1/5). By default all axes except those along which the names of labels state
    sides, such as "left kidney", and none if the run has fewer than 2000 samples or sees each case fewer than 25 times."""
    normalize_after_crop: bool = True
    """For MRI: normalise by the statistics of the crop, as the paper's code does. Otherwise those of the whole scan are used, as in
    validation."""
    pad_foreground: bool = True
    """For MRI: pad the foreground to multiples of the crop before cropping, as the paper's code does, instead of cropping within it."""


@dataclass(frozen=True)
class Validation:
    """Options of the validation during the run."""

    every: int | None = None
    """Steps between validations, by default a tenth of the run; with --validation.pseudo, by default one validation at the end."""
    overlap: float = 0.5
    """Fraction of a window by which neighbouring windows overlap."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """Weights of the voxels of a window where windows overlap."""
    batch: int = 1
    """Windows per call of the network."""
    mirror: bool = False
    """Average over mirrored windows too, as predict does with --mirror, which takes up to 8 times as long. Axes along which labels name
    sides are not mirrored. A pseudo-Dice is never mirrored."""
    cases: int | None = None
    """Validate on the first cases only, at most this many."""
    patience: int | None = None
    """Stop after this many validations without a better score."""
    pseudo: int | None = None
    """Number of patches of validation cases for a pseudo-Dice during the run, such as 50. It is not the Dice of scans and decides
    nothing."""
    pseudo_every: int | None = None
    """Steps between computations of the pseudo-Dice, by default a hundredth of the run."""


@dataclass(frozen=True)
class Init:
    """The initial weights."""

    checkpoint: Annotated[Path | None, MAY_BE_MODEL] = None
    """Anything that predict can read, also in a bucket or on the Hugging Face hub: a run, a packed model, a checkpoint folder, a MONAI .pt
    file or bundle, or a safetensors file."""
    key: str | None = None
    """The entry of the file that holds the network, such as model_ema, if the file holds several."""
    encoder_only: bool = False
    """Take only the Swin encoder (self-supervised weights)."""
    adapt_channels: bool = False
    """Allow another number of input or output channels than the checkpoint has."""
    downsample: Literal["legacy", "merging", "mergingv2"] | None = None
    """Order of patch merging, if the file does not state it."""


@dataclass(frozen=True)
class Devices:
    """The division of the work among devices. Batches and samples do not depend on it."""

    spatial_shards: int = 1
    """Number of devices that share each volume, for volumes that do not fit into one device's memory. The first axis is divided."""
    pmap: bool = False
    """Distribute a batch with jax.pmap instead of sharding it under jax.jit."""


@dataclass(frozen=True)
class Phantom:
    """The synthetic data set that the run makes."""

    cases: int = 20
    """Number of heads."""
    size: tuple[int, int, int] = (96, 96, 64)
    """Voxels per axis, for a head of 240 x 240 x 155 mm."""
    seed: int = 0
    """Seed of the heads and their tumours."""


def __getattr__(name: str) -> Any:
    """Returns `Recipe` with a warning, because scripts may import it from here."""
    if name == "Recipe":
        from swinunetr_jax.training.recipe import Recipe

        warnings.warn(
            "import Recipe from swinunetr_jax.training; this name will be removed in the next version", DeprecationWarning, 2
        )
        return Recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Pretrain:
    """Pre-training without labels."""

    mask_ratio: float = 0.6
    """mim: share of the blocks of a crop that are masked."""
    mask_block: int | None = None
    """mim: edge of a block in voxels; by default 16, or 8 if an axis of the crop has fewer than 96 voxels."""
    local_batch: int = 2
    """swin3: number of samples that form a local batch, as on one GPU in the paper. Cut-outs take content from it."""
    contrast: Literal["local", "all"] = "local"
    """swin3: the views that each view is contrasted with: those of its local batch, or those of all samples of the step on all devices."""
