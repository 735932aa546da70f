"""The options of a run: typed fields, each an option of the command line, which are stored in RUN/run.json. See also `recipe`."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

import msgspec
from tyro.conf import Suppress

from swinunetr_jax import InputError, SwinUNETRConfig
from swinunetr_jax.files import local_path
from swinunetr_jax.losses import Loss


@dataclass(frozen=True)
class Network:
    """The network, as far as data do not decide it; the arguments are those of SwinUNETRConfig."""

    feature_size: int = 48
    """Channels at full resolution, a multiple of 12."""
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Transformer blocks of each stage."""
    num_heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    """Attention heads of each stage."""
    window_size: tuple[int, int, int] = (7, 7, 7)
    """Size of the attention windows in tokens."""
    norm_name: Literal["instance", "batch"] = "instance"
    """Normalisation of the convolution blocks."""
    use_v2: bool = False
    """A residual convolution block before each stage."""
    downsample: Literal["legacy", "merging", "mergingv2"] = "merging"
    """Order of patch merging; legacy goes with published weights."""
    drop_rate: float = 0.0
    """Dropout rate of tokens, 0 to less than 1."""
    attn_drop_rate: float = 0.0
    """Dropout rate of attention weights, 0 to less than 1."""
    dropout_path_rate: float = 0.0
    """Stochastic depth, the rate of the last block."""
    use_checkpoint: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation type; parameters and statistics stay float32."""

    def config(self, in_channels: int, out_channels: int) -> SwinUNETRConfig:
        return SwinUNETRConfig(in_channels=in_channels, out_channels=out_channels, **vars(self))

    def in_use(self) -> dict[str, Any]:
        """Fields that may change between the network that was saved and the one that is trained on from it."""
        names = ("drop_rate", "attn_drop_rate", "dropout_path_rate", "use_checkpoint", "dtype")
        return {name: getattr(self, name) for name in names}


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
    """After the warm-up, to 0 at the last step; constant stays."""
    power: float = 0.9
    """Exponent of the polynomial schedule."""
    warmup: float = 0.0
    """Steps of linear warm-up; a number below 1 is a share of all steps."""
    clip: float | None = None
    """Largest global norm of the gradient."""
    accumulate: int = 1
    """Split each batch into so many parts, one after the other: less memory, and the same step for losses that are means of samples'."""
    ema: float | None = None
    """Decay of an average of the weights, such as 0.999; it is then what is validated and kept."""


@dataclass(frozen=True)
class Augment:
    """Random changes of training samples."""

    flips: tuple[int, ...] | None = None
    """Axes to mirror along, each with probability one half (CT: one fifth); by default all three but those along which names of labels
    tell sides, such as "left kidney", and none in a run that sees each case fewer than 25 times."""
    normalize_after_crop: bool = True
    """For MRI: by the crop's statistics, as in the paper's code; otherwise by the whole scan's, as in validation."""
    pad_foreground: bool = True
    """For MRI: pad the foreground to multiples of the crop before cropping, as in the paper's code; otherwise crop within it."""


@dataclass(frozen=True)
class Validation:
    """How the network is looked at on the way."""

    every: int | None = None
    """Steps between validations; by default a tenth of the run."""
    overlap: float = 0.5
    """Share that neighbouring windows overlap."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """Weights within a window where windows overlap."""
    batch: int = 1
    """Windows per call of the network."""
    cases: int | None = None
    """Look at the first so many validation cases only."""
    patience: int | None = None
    """Stop after so many validations without a better score."""


@dataclass(frozen=True)
class Init:
    """Where the weights start from."""

    checkpoint: Path | None = None
    """Whatever predict takes: a run, a checkpoint folder, MONAI's .pt, safetensors."""
    encoder_only: bool = False
    """Take the Swin encoder alone (self-supervised weights)."""
    adapt_channels: bool = False
    """Allow another number of input or output channels."""
    downsample: Literal["legacy", "merging", "mergingv2"] | None = None
    """Order of patch merging of a file that does not tell it."""


@dataclass(frozen=True)
class Devices:
    """How devices share the work; batches, and so the samples that are seen, do not depend on it."""

    depth: int = 1
    """Devices that share each volume, divided along its first axis: for volumes that do not fit into one device's memory."""
    pmap: bool = False
    """Share a batch by jax.pmap instead of by the compiler."""


@dataclass(frozen=True)
class Phantom:
    """The data set that is made on the spot."""

    cases: int = 20
    """How many heads to make."""
    size: tuple[int, int, int] = (96, 96, 64)
    """Voxels per axis, for a head of 240 x 240 x 155 mm."""
    seed: int = 0
    """Seed of the heads and their tumours."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """All options of a training run."""

    name: Suppress[str] = ""
    """Name of the recipe, which the command line fills in, for the report."""
    data: Path | None = None
    """The data set, in any layout that `swinunetr predict` reads."""
    base: Path | None = None
    """Folder from which the paths of a dataset.json or datalist start, by default the list's own."""
    out: Path = Path("runs/latest")
    """Folder of the run."""
    kind: Literal["phantom", "brats", "labels"]
    """phantom: made on the spot; brats: tumour regions; labels: what the data set says of its labels."""
    steps: int | None = None
    """Optimizer steps; by default the epochs' worth."""
    epochs: int = 300
    """Passes over the training cases, where steps are not given."""
    batch: int = 1
    """Volumes per step."""
    seed: int = 0
    """Seed of the initial weights, the order of cases, the crops and dropout."""
    fold: Literal["all"] | int | None = 0
    """Fold to validate on; all trains one network per fold; None takes the data set's own validation list."""
    folds: int = 5
    """How many folds to draw where the data set has none."""
    fold_seed: int = 0
    """Seed of drawing the folds, so that runs with other seeds validate on the same cases."""
    splits: Path | None = None
    """nnU-Net's splits_final.json with the folds, by default the one that belongs to the data set, if there is one."""
    patient: str | None = None
    """Regular expression that finds the patient in a case's name, by its first group or the whole match: '(P[0-9]+)_'. Cases of one patient
    stay in one fold; by default BIDS, BraTS and the usual PATIENT_VISIT names are known."""
    roi: tuple[int, int, int] | None = None
    """Training crop and window, multiples of 32; by default fitted to the scans."""
    channels: tuple[str, ...] = ()
    """Input channels by name, by default the data set's."""
    orientation: str | None = None
    """Axes that scans are brought to, such as RAS; None leaves them as stored."""
    spacing: tuple[float, float, float] | None = None
    """Voxel size in mm that scans are brought to; None leaves them as stored."""
    window: tuple[float, float] | None = None
    """Intensities that become 0 to 1, for CT, which is then cropped around labels; None takes each channel's mean and deviation."""
    cache: Path | None = None
    """Folder for prepared cases, by default beside the run's checkpoints."""
    cache_dtype: Literal["float32", "float16"] = "float32"
    """Type of the prepared scans; float16 takes half the disk."""
    workers: int = 0
    """Processes that read and augment; 0 does it in threads."""
    save_every: int | None = None
    """Steps between saved states; a state is also saved before each validation, and every 20 minutes."""
    keep: int = 2
    """Saved states to keep besides the best network."""
    network: Network = field(default_factory=Network)
    optim: Optim = field(default_factory=Optim)
    loss: Loss = field(default_factory=Loss)
    augment: Augment = field(default_factory=Augment)
    validation: Validation = field(default_factory=Validation)
    init: Init = field(default_factory=Init)
    devices: Devices = field(default_factory=Devices)
    phantom: Suppress[Phantom] = field(default_factory=Phantom)  # only the recipe `phantom` offers these as options

    def check(self) -> None:
        """Raises InputError for a value that no run can have; apart from construction, since the command line tells that by itself."""
        for name, value, least in (
            ("steps", self.steps, 1),
            ("epochs", self.epochs, 1),
            ("batch", self.batch, 1),
            ("folds", self.folds, 2),
            ("workers", self.workers, 0),
            ("keep", self.keep, 1),
            ("save_every", self.save_every, 1),
            ("optim.accumulate", self.optim.accumulate, 1),
            ("devices.depth", self.devices.depth, 1),
            ("validation.every", self.validation.every, 1),
            ("validation.cases", self.validation.cases, 1),
            ("validation.patience", self.validation.patience, 1),
        ):
            if value is not None and value < least:
                raise InputError(f"`{name}` must be at least {least}, got {value}.")
        for name, value, fits, want in (
            ("optim.accumulate", self.optim.accumulate, self.batch % self.optim.accumulate == 0, f"divide `batch` {self.batch}"),
            ("optim.lr", self.optim.lr, self.optim.lr > 0, "be above 0"),
            ("optim.clip", self.optim.clip, self.optim.clip is None or self.optim.clip > 0, "be above 0"),
            ("optim.warmup", self.optim.warmup, self.optim.warmup >= 0, "be at least 0"),
            ("optim.weight_decay", self.optim.weight_decay, self.optim.weight_decay >= 0, "be at least 0"),
            ("optim.ema", self.optim.ema, self.optim.ema is None or 0 < self.optim.ema < 1, "lie between 0 and 1"),
            ("validation.overlap", self.validation.overlap, 0 <= self.validation.overlap < 1, "be at least 0 and below 1"),
            ("validation.batch", self.validation.batch, self.validation.batch >= 1, "be at least 1"),
            ("augment.flips", self.augment.flips, set(self.augment.flips or ()) <= {0, 1, 2}, "name axes 0, 1 and 2"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "be at least 0 and below 2**32"),
            ("fold_seed", self.fold_seed, 0 <= self.fold_seed < 2**32, "be at least 0 and below 2**32"),
        ):
            if not fits:
                raise InputError(f"`{name}` must {want}, got {value}.")
        for name, value in flat(self.to_dict()).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"`{name}` must be a finite number, got {value}.")
        init = self.init
        for path in (self.data, self.base, self.splits, self.out, self.cache, init.checkpoint):
            if path is not None:
                local_path(path)
        if init.checkpoint is None and (init.encoder_only or init.adapt_channels or init.downsample):
            raise InputError(
                "options of --init say how to take up a checkpoint, and none was given: name it with --init.checkpoint."
            )
        if self.devices.pmap:
            for name, off, why in (
                ("devices.depth", self.devices.depth == 1, "divides a volume, which needs the compiler"),
                ("network.norm_name batch", self.network.norm_name != "batch", "takes statistics of the whole batch"),
                ("loss.batch", not self.loss.batch, "takes the Dice of the whole batch"),
            ):
                if not off:
                    raise InputError(
                        f"`{name}` {why}, and `devices.pmap` looks at each device's samples alone: leave one of them out."
                    )
        network = self.network.config(1, 2)  # which checks itself
        if self.roi is not None:
            network.check_spatial(self.roi)

    def absolute(self) -> Self:
        """The same with absolute paths, so that a run can be continued from any folder."""
        paths = {
            name: getattr(self, name) and getattr(self, name).absolute() for name in ("data", "base", "splits", "cache", "out")
        }
        checkpoint = self.init.checkpoint and self.init.checkpoint.absolute()
        return dataclasses.replace(self, **paths, init=dataclasses.replace(self.init, checkpoint=checkpoint))

    def total_steps(self, cases: int) -> int:
        return self.steps or -(-self.epochs * cases // self.batch)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`, of an earlier version too: a field that it lacks has its default.

        Raises:
            InputError: a field is unknown, or has a value of another type.
        """
        unknown = [name for name in flat(values) if not _is_field(Options, name)]
        if unknown:
            raise InputError(f"the options of the run hold {', '.join(unknown[:4])}, which this version does not know.")
        try:
            return cls(**vars(msgspec.convert(values, Options, dec_hook=_decode)))
        except msgspec.ValidationError as error:
            raise InputError(f"the options of the run are not what this version writes ({error}).") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by dotted name, such as optim.lr, out of nested ones."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return found


def _is_field(kind: type, name: str) -> bool:
    """Whether a dotted name is a field of a dataclass, or of one of its fields."""
    first, _, rest = name.partition(".")
    hint = get_type_hints(kind).get(first)
    return hint is not None and (not rest or (dataclasses.is_dataclass(hint) and _is_field(hint, rest)))


def _decode(kind: type, value: Any) -> Any:
    """A path from its text, for msgspec, which knows none."""
    if kind is not Path or not isinstance(value, str):
        raise ValueError(f"expected `{kind.__name__}`, got {type(value).__name__}")
    return Path(value)


def __getattr__(name: str) -> Any:
    """`Recipe` has a module of its own; scripts that import it from here still work."""
    if name == "Recipe":
        from swinunetr_jax.training.recipe import Recipe

        warnings.warn("import Recipe from swinunetr_jax.training; the old name goes with the next version", DeprecationWarning, 2)
        return Recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
