"""All options of a run, which are stored in RUN/run.json; `recipe.Recipe` adds functions to them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_type_hints

import msgspec
from tyro.conf import Suppress, UseAppendAction

from swinunetr_jax import InputError
from swinunetr_jax.arguments import check_paths
from swinunetr_jax.buckets import MAY_BE_ADDRESS, is_address, is_hub_address, scratch_folder, shown
from swinunetr_jax.losses import Loss
from swinunetr_jax.training.config import Augment, Devices, Init, Network, Optim, Phantom, Pretrain, Validation
from swinunetr_jax.training.option_values import decode_path, is_field, json_value, renamed
from swinunetr_jax.training.trackers import TrackerName, check_trackers

T = TypeVar("T", bound=Any)
Kind = Literal["phantom", "brats", "labels", "scans"]
PretrainTask = Literal["mim", "swin3"]
WINDOWS = ("overlap", "blend", "batch")  # options of a sliding window


@dataclass(frozen=True, kw_only=True)
class Options:
    """All options of a training run."""

    name: Suppress[str] = ""
    """Name of the recipe for the report, which the command line sets."""
    data: Annotated[Path | None, MAY_BE_ADDRESS] = None
    """The data set, in any layout that `swinunetr predict` reads; or the folder or address of what `swinunetr prepare` has written."""
    base: Path | None = None
    """Folder that the paths of a dataset.json or datalist are relative to, by default the folder of that file."""
    plan: Annotated[Path | None, MAY_BE_ADDRESS] = None
    """The file of `swinunetr plan`, whose options replace those of the recipe. Options of the command line replace those of the plan."""
    out: Annotated[Path, MAY_BE_ADDRESS] = Path("runs/latest")
    """Folder of the run, or its address in a bucket, such as gs://bucket/run."""
    kind: Kind
    """phantom: synthetic data made by the run; brats: tumour regions; labels: the labels that the data set states; scans: no labels, for
    pre-training."""
    task: Suppress[PretrainTask] = "mim"  # an option only of pre-training
    """Pre-training task. mim: fill in masked blocks. swin3: rotation, contrast and inpainting, as in the paper."""
    steps: int | None = None
    """Number of optimizer steps, by default as many as the epochs need."""
    epochs: int = 300
    """Passes over the training cases, if --steps is not given."""
    batch: int = 1
    """Volumes per step."""
    seed: int = 0
    """Seed of the initial weights, the order of cases, the crops and dropout."""
    fold: Literal["all"] | int | None = 0
    """Fold to validate on; all trains one network per fold; None uses the data set's own validation list."""
    folds: int = 5
    """Number of folds to draw if the data set has none."""
    fold_seed: int = 0
    """Seed of the folds, which is separate from --seed, so that runs with different seeds validate on the same cases."""
    splits: Path | None = None
    """nnU-Net's splits_final.json with the folds, by default the one of the data set, if there is one."""
    patient: str | None = None
    """Regular expression that finds the patient in a case's name, by its first group or the whole match: '(P[0-9]+)_'. Cases of one patient
    stay in one fold. By default BIDS, BraTS and the usual PATIENT_VISIT names are recognised."""
    roi: tuple[int, int, int] | None = None
    """Size of the training crop and of the sliding window, multiples of 32; by default fitted to the scans."""
    channels: tuple[str, ...] = ()
    """Input channels by name, by default the data set's."""
    orientation: str | None = None
    """Orientation that scans are brought to, such as RAS; None leaves them as stored."""
    spacing: tuple[float, float, float] | None = None
    """Voxel size in mm that scans are resampled to; None leaves them as stored."""
    window: tuple[float, float] | None = None
    """Intensities that become 0 and 1, for CT; crops are then taken around labels. None normalises by each channel's statistics."""
    class_share: float = 0.0
    """Share of the samples whose crop is centred on a voxel of a randomly drawn class; nnU-Net uses 0.33."""
    cache: Annotated[Path | None, MAY_BE_ADDRESS] = None
    """Folder for prepared cases, or its address in a bucket; by default RUN/cache."""
    cache_dtype: Literal["float32", "float16"] = "float32"
    """Type of the prepared scans; float16 takes half the disk space."""
    workers: int = 0
    """Number of processes that read and augment samples; 0 uses threads instead."""
    save_every: int | None = None
    """Steps between saved states; a state is also saved before each validation, and every `save_minutes`."""
    save_minutes: float | None = None
    """Minutes between saved states, by default 20, and 5 if the run is in a bucket."""
    profile: tuple[int, int] | None = None
    """STEP COUNT: write a trace of COUNT steps after step STEP for xprof into RUN/profile. The first step after a start also compiles."""
    watchdog_minutes: float | None = None
    """Minutes without progress in a step after which a process ends; the limits of compiling, validation and other work are multiples of
    it. By default 10 if several processes train or the run is in a bucket, otherwise 0, which means never."""
    keep: int = 2
    """Saved states to keep in addition to the best network."""
    tracker: UseAppendAction[tuple[TrackerName, ...]] = ()
    """Experiment tracker that also receives the numbers of the log; the option may be repeated."""
    deep_supervision: bool = False
    """Also compute the loss at 1/2, 1/4 and 1/8 of the resolution, by heads on the decoder that exist only during training."""
    network: Network = field(default_factory=Network)
    optim: Optim = field(default_factory=Optim)
    loss: Loss = field(default_factory=Loss)
    augment: Augment = field(default_factory=Augment)
    validation: Validation = field(default_factory=Validation)
    init: Init = field(default_factory=Init)
    devices: Devices = field(default_factory=Devices)
    phantom: Suppress[Phantom] = field(default_factory=Phantom)  # options only of the recipe `phantom`
    pretrain: Suppress[Pretrain] = field(default_factory=Pretrain)  # options only of pre-training

    def check(self) -> None:
        """Raises InputError for a value that no run can have. Construction does not check, because tyro constructs options, too."""
        for name, value, least in (
            ("steps", self.steps, 1),
            ("epochs", self.epochs, 1),
            ("batch", self.batch, 1),
            ("folds", self.folds, 2),
            ("workers", self.workers, 0),
            ("keep", self.keep, 1),
            ("save_every", self.save_every, 1),
            ("optim.accumulate", self.optim.accumulate, 1),
            ("devices.spatial_shards", self.devices.spatial_shards, 1),
            ("validation.every", self.validation.every, 1),
            ("validation.cases", self.validation.cases, 1),
            ("validation.patience", self.validation.patience, 1),
            ("validation.pseudo", self.validation.pseudo, 1),
            ("validation.pseudo_every", self.validation.pseudo_every, 1),
        ):
            if value is not None and value < least:
                raise InputError(f"`{name}` must be at least {least}, got {value}.")
        for name, value, valid, requirement in (
            ("optim.accumulate", self.optim.accumulate, self.batch % self.optim.accumulate == 0, f"divide `batch` {self.batch}"),
            ("optim.lr", self.optim.lr, self.optim.lr > 0, "be above 0"),
            ("optim.clip", self.optim.clip, self.optim.clip is None or self.optim.clip > 0, "be above 0"),
            ("optim.warmup", self.optim.warmup, self.optim.warmup >= 0, "be at least 0"),
            ("optim.weight_decay", self.optim.weight_decay, self.optim.weight_decay >= 0, "be at least 0"),
            (
                "optim.layer_decay",
                self.optim.layer_decay,
                self.optim.layer_decay is None or 0 < self.optim.layer_decay <= 1,
                "be above 0 and at most 1",
            ),
            ("optim.ema", self.optim.ema, self.optim.ema is None or 0 < self.optim.ema < 1, "be between 0 and 1"),
            ("validation.overlap", self.validation.overlap, 0 <= self.validation.overlap < 1, "be at least 0 and below 1"),
            ("validation.batch", self.validation.batch, self.validation.batch >= 1, "be at least 1"),
            ("class_share", self.class_share, 0 <= self.class_share <= 1, "be between 0 and 1"),
            ("augment.flips", self.augment.flips, set(self.augment.flips or ()) <= {0, 1, 2}, "name axes 0, 1 and 2"),
            ("save_minutes", self.save_minutes, self.save_minutes is None or self.save_minutes > 0, "be above 0"),
            (
                "profile",
                self.profile,
                self.profile is None or (self.profile[0] >= 0 and self.profile[1] > 0),
                "have a step of at least 0 and a number of steps above 0",
            ),
            ("watchdog_minutes", self.watchdog_minutes, (self.watchdog_minutes or 0) >= 0, "be at least 0"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "be at least 0 and below 2**32"),
            ("fold_seed", self.fold_seed, 0 <= self.fold_seed < 2**32, "be at least 0 and below 2**32"),
        ):
            if not valid:
                raise InputError(f"`{name}` must {requirement}, got {value}.")
        for name, value in flatten(self.to_dict()).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"`{name}` must be a finite number, got {value}.")
        check_paths(self)
        if self.data is not None and is_address(self.data) and shown(self.out) == shown(self.data):
            raise InputError(f"--out is {shown(self.out)}, which is also --data: give the run an address of its own.")
        if self.validation.pseudo is None and self.validation.pseudo_every is not None:
            raise InputError("`validation.pseudo_every` needs a number of patches: give --validation.pseudo, such as 50.")
        init = self.init
        if init.checkpoint is None and (init.key or init.encoder_only or init.adapt_channels or init.downsample):
            raise InputError(
                "the options of --init state how a checkpoint is used, but none was given: name it with --init.checkpoint."
            )
        check_trackers(self.tracker)
        if self.kind == "scans":
            self._check_pretraining()
        if self.devices.pmap:
            self._check_pmap()
        self._check_network()

    def _check_network(self) -> None:
        """Raises InputError for options that the network cannot have, or crops that it cannot take."""
        custom = self.network.custom
        if custom is None and self.network.settings != Network().settings:
            raise InputError(
                "`network.settings` is for a registered network: name it with --network.name, or leave the settings out."
            )
        # The constructor of the configuration checks the options.
        network = self.network.config(1, 2) if custom is None else self.network.custom_config(custom, 1, 2)
        if self.roi is not None:
            network.check_spatial(self.roi)

    def _check_pretraining(self) -> None:
        """Raises InputError for an option that needs labels, or a value that no pre-training can have."""
        for name, is_set in (
            ("fold all", self.fold == "all"),
            ("class_share", self.class_share > 0),
            ("deep_supervision", self.deep_supervision),
            ("validation.mirror", self.validation.mirror),
            ("validation.pseudo", self.validation.pseudo is not None),
            *((f"validation.{name}", getattr(self.validation, name) != getattr(Validation(), name)) for name in WINDOWS),
        ):
            if is_set:
                raise InputError(f"`{name}` is for a training with labels, and pre-training has none: leave it out.")
        if not 0 < self.pretrain.mask_ratio < 1:
            raise InputError(f"`pretrain.mask_ratio` must be above 0 and below 1, got {self.pretrain.mask_ratio}.")
        other = "mim" if self.task == "swin3" else "swin3"
        for name in ("mask_ratio", "mask_block") if self.task == "swin3" else ("local_batch", "contrast"):
            if getattr(self.pretrain, name) != getattr(Pretrain(), name):
                raise InputError(f"`pretrain.{name}` is an option of --task {other}, and this is {self.task}: leave it out.")
        if self.task == "swin3":
            self._check_swin3()
        for name, value in (("mask_block", self.pretrain.mask_block), ("local_batch", self.pretrain.local_batch)):
            if value is not None and value < 1:
                raise InputError(f"`pretrain.{name}` must be at least 1, got {value}.")

    def _check_swin3(self) -> None:
        """Raises InputError for a batch or another option that swin3 cannot have."""
        local, part = self.pretrain.local_batch, self.batch // self.optim.accumulate
        if local > 0 and part % local:
            parts = f" in {self.optim.accumulate} parts" if self.optim.accumulate > 1 else ""
            raise InputError(
                f"a batch of {self.batch}{parts} cannot be divided into local batches of {local} samples: choose another --batch, "
                "--optim.accumulate or --pretrain.local-batch."
            )
        if self.pretrain.contrast == "all" and (self.optim.accumulate > 1 or self.devices.pmap):
            option = "--optim.accumulate" if self.optim.accumulate > 1 else "--devices.pmap"
            raise InputError(
                f"--pretrain.contrast all compares the views of a whole batch, but with {option} only a part of it is computed at a time: "
                "leave one of them out."
            )
        if self.optim.ema is not None:
            raise InputError(
                "--optim.ema averages the network, but not the heads of swin3, so that no loss belongs to both: leave it out."
            )

    def _check_pmap(self) -> None:
        """Raises InputError for an option that needs more than the samples of one device."""
        for name, is_set, reason in (
            ("devices.spatial_shards", self.devices.spatial_shards > 1, "divides a volume, which needs sharding under jax.jit"),
            ("network.norm_name batch", self.network.norm_name == "batch", "computes statistics over the whole batch"),
            ("loss.batch", self.loss.batch, "computes the Dice over the whole batch"),
            ("loss.class_weights", self.loss.class_weights is not None, "computes a weighted mean over the whole batch"),
        ):
            if is_set:
                raise InputError(
                    f"`{name}` {reason}, but with `devices.pmap` each device sees only its own samples: leave one of them out."
                )

    def absolute(self) -> Self:
        """Returns the options with absolute paths, so that the run can be continued from any folder.

        A run in a bucket is trained in the scratch folder of this process, which replaces the address in `out`. The other addresses stay as
        they are.
        """
        return _map_paths(self.in_scratch(), _absolute)

    def in_scratch(self) -> Self:
        """Returns the options with the scratch folder of this process as `out`, if `out` is an address."""
        return dataclasses.replace(self, out=scratch_folder(self.out, shared=False)) if is_address(self.out) else self

    def total_steps(self, cases: int) -> int:
        """Returns the number of steps of a run with this number of training cases."""
        return self.steps or -(-self.epochs * cases // self.batch)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return json_value(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the options of a dict from `to_dict`, possibly of an earlier version. A field that the dict lacks has its default.

        Raises:
            InputError: a field is unknown, or has a value of another type.
        """
        values = renamed(values)
        unknown = [name for name in flatten(values) if not is_field(Options, name)]
        if unknown:
            raise InputError(f"the options of the run hold {', '.join(unknown[:4])}, which this version does not know.")
        try:
            return cls(**vars(msgspec.convert(values, Options, dec_hook=decode_path)))
        except (msgspec.ValidationError, UnicodeEncodeError) as error:  # a lone surrogate where a word is expected
            raise InputError(f"the options of the run have unexpected values ({error}).") from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested options by dotted name, such as optim.lr."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return flat


def _absolute(path: Path) -> Path:
    return path if is_address(path) or is_hub_address(path) else path.absolute()


def _map_paths(options: T, change: Callable[[Path], Path], kind: type = Options) -> T:
    """Returns the options with a function applied to all paths among the fields of `kind` and of its groups."""
    changed: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        value = getattr(options, name)
        if isinstance(value, Path):
            changed[name] = change(value)
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, hint):
            changed[name] = _map_paths(value, change, hint)
    return dataclasses.replace(options, **changed)
