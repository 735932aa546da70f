"""A recipe: the options of a run, and functions that replace parts of the trainer.

A recipe is the value RECIPE of a Python file, which is one of `train/recipes/` or any other file. Its functions are executed from that
file, also when a run is resumed. The text that is stored in the run's folder is only compared with the file and never executed.
"""

import dataclasses
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, get_type_hints

import cloudpickle
import optax
from jax import Array

from swinunetr_jax import InputError, Task, files
from swinunetr_jax.augment import Augmentation
from swinunetr_jax.data.augment.transforms import Transform
from swinunetr_jax.losses import Loss
from swinunetr_jax.model.custom import CustomNetwork, NetworkFactory
from swinunetr_jax.training.config import REGISTRY_FIELDS, Augment, Network
from swinunetr_jax.training.deep_supervision import DeepSupervisionFactory
from swinunetr_jax.training.objective import LossFunction, ObjectiveFactory
from swinunetr_jax.training.options import Options, flatten
from swinunetr_jax.training.pretrain.objectives import pretraining_objective
from swinunetr_jax.training.trackers import Tracker
from swinunetr_jax.weights.params import NetworkConfig

ATTRIBUTE = "RECIPE"
# Key in a field's metadata. If the field is a function, the options whose names start with one of the values have no effect.
REPLACES = "replaces"
NOT_PARTS = {"trackers", "planned", "file"}  # fields of a recipe that do not replace a part of the trainer

Optimizer = optax.GradientTransformation | tuple[optax.GradientTransformation, optax.Schedule]
BatchAugmentation = Callable[[Array, Array, Array], tuple[Array, Array]]
"""(images [b, x, y, z, c], label maps [b, x, y, z], keys [b]) -> changed images and label maps; a sample's key seeds its random changes."""


@dataclass(frozen=True)
class RecipeFile:
    """The file that a recipe was read from: its absolute path, and its text at that time."""

    path: Path
    text: str


@dataclass(frozen=True, kw_only=True)
class Recipe(Options):
    """A training run: its options, and functions that replace parts of the trainer. A function may take the place of a group of options.

    Attributes:
        network: options of a Swin UNETR; the name of a registered network (`swinunetr_jax.registry`), which becomes `Network(name=…)`; or
            (in_channels, out_channels, *, rngs) -> `flax.nnx.Module`, for example a class. The module is called as
            `model(x, key=None, train=False)` with x [b, x, y, z, in_channels] and returns logits [b, x, y, z, out_channels].
        loss: options of the Dice loss, or (logits, labels, task) -> a number.
        augment: options of the random changes on the host; or an `Augmentation`, which replaces them by changes on the device; or a
            function of a batch on the device, see `BatchAugmentation`, in addition to the usual changes on the host. On the device it is a
            separate program that runs before the training step. A sample's key depends only on the seed and the sample's number.
        objective: (task, config, rngs) -> an `Objective`, or a function (model, batch, key) -> loss, or loss and metrics. It replaces
            `loss` and `deep_supervision`.
        transforms: (task) -> the transforms of a sample on the host. They replace the crop, the normalisation and the random changes of
            `augment`, and `class_share`. The last one must return arrays of one size.
        optimizer: (number of steps) -> an optax transformation, or a pair of it and its schedule of learning rates, which is then logged.
            It replaces AdamW and the options of `optim`, except for `accumulate` and `ema`.
        trackers: objects that receive the numbers of the log, see `trackers.Tracker`, in addition to those of the option `tracker`.
        planned: whether `swinunetr train` makes a plan for the data and the device if it is given none.
        file: the file that the recipe was read from.
    """

    # A function may replace these groups of options, so their types are wider than those of `Options`.
    network: Network | NetworkFactory | str = dataclasses.field(default_factory=Network)  # pyright: ignore[reportIncompatibleVariableOverride]
    loss: Loss | LossFunction = dataclasses.field(default_factory=Loss)  # pyright: ignore[reportIncompatibleVariableOverride]
    augment: Augment | Augmentation | BatchAugmentation = dataclasses.field(default_factory=Augment)  # pyright: ignore[reportIncompatibleVariableOverride]
    objective: ObjectiveFactory | None = dataclasses.field(default=None, metadata={REPLACES: ("loss.", "deep_supervision")})
    transforms: Callable[[Task], Sequence[Transform]] | None = dataclasses.field(
        default=None, metadata={REPLACES: ("augment.", "class_share")}
    )
    optimizer: Callable[[int], Optimizer] | None = dataclasses.field(
        default=None,
        metadata={
            REPLACES: tuple(
                f"optim.{name}" for name in ("lr", "weight_decay", "betas", "schedule", "power", "warmup", "clip", "layer_decay")
            )
        },
    )
    trackers: tuple[Tracker, ...] = ()
    planned: bool = False
    file: RecipeFile | None = None

    def __post_init__(self) -> None:
        if isinstance(self.network, str):
            object.__setattr__(self, "network", Network(name=self.network))  # the dataclass is frozen

    def functions(self) -> dict[str, Any]:
        """Returns the functions of the recipe by the name of their field, including functions in place of a group of options."""
        hints, functions = get_type_hints(Options), {}
        for name in _parts():
            value = getattr(self, name)
            if value is not None and not (name in hints and isinstance(value, hints[name])):
                functions[name] = value
        return functions

    def options(self) -> Options:
        """Returns only the options, where groups that a function replaces have their defaults."""
        functions = self.functions()
        return Options(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Options) if f.name not in functions})

    def with_options(self, options: Options) -> "Recipe":
        """Returns the recipe with other options and its own functions.

        Raises:
            InputError: an option was given that has no effect, because a function replaces its part.
        """
        given, defaults = flatten(options.to_dict()), flatten(self.options().to_dict())
        changed = [name for name in given if given[name] != defaults[name]]
        self.check_effect(changed)
        if options.network.custom is not None:
            of_swin_unetr = [
                name for name in changed if name.startswith("network.") and name.split(".")[1] not in REGISTRY_FIELDS
            ]
            if of_swin_unetr:
                raise InputError(
                    f"--{of_swin_unetr[0].replace('_', '-')} is an option of a Swin UNETR and has no effect on the network "
                    f"{options.network.name}: leave it out."
                )
        return dataclasses.replace(self, **vars(options) | self.functions())

    def check_effect(self, names: Iterable[str]) -> None:
        """Raises InputError for an option, such as loss.kind, that has no effect because a function replaces its part."""
        names = list(names)
        for part, replaced in self.replaced_options().items():
            without_effect = [name for name in names if name.startswith(replaced)]
            if without_effect:
                is_pretraining = part == "objective" and self.kind == "scans" and self.objective is None
                reason = "pre-training has a loss of its own" if is_pretraining else f"the recipe gives a function for `{part}`"
                raise InputError(f"--{without_effect[0].replace('_', '-')} has no effect here, since {reason}: leave it out.")

    def replaced_options(self) -> dict[str, tuple[str, ...]]:
        """Returns for each function of the recipe the prefixes of the names of the options that it replaces."""
        parts = _parts()
        replaced = {part: parts[part].metadata.get(REPLACES, (f"{part}.",)) for part in self.functions()}
        return replaced | ({"objective": parts["objective"].metadata[REPLACES]} if self.kind == "scans" else {})

    def check(self) -> None:
        """Raises InputError for a value that no run can have."""
        options = self.options()
        # The sizes of crops that the network of a function takes are not known, so `roi` is not checked for it.
        functions = self.functions()
        (dataclasses.replace(options, roi=None) if "network" in functions else options).check()
        if "objective" in functions and "loss" in functions:
            raise InputError(
                "the recipe gives a function for `loss` and one for `objective`, which replaces the loss: leave one out."
            )
        if self.deep_supervision and ("objective" in functions or self.custom_network is not None):
            part = "objective" if "objective" in functions else "network"
            raise InputError(
                f"`deep_supervision` is the trainer's objective for a Swin UNETR, but the recipe gives {self._given(part)}: leave one of "
                "them out."
            )
        if self.class_share and "transforms" in functions:
            raise InputError(
                "`class_share` centres the trainer's own crops on classes, but the recipe gives a function for `transforms`: leave one "
                "of them out."
            )
        if self.optim.layer_decay is not None and ("optimizer" in functions or self.custom_network is not None):
            part = "optimizer" if "optimizer" in functions else "network"
            raise InputError(
                f"`optim.layer_decay` is for AdamW and the layers of a Swin UNETR, but the recipe gives {self._given(part)}: leave one "
                "of them out."
            )
        for name, function in functions.items():
            if not callable(function) and not isinstance(function, Augmentation):
                raise InputError(f"`{name}` of the recipe must be options or a function, got {type(function).__name__}.")
        if "augment" in functions and options.devices.pmap:
            raise InputError(
                "the recipe changes batches on the device, but with `devices.pmap` each device has only its own samples: leave one of "
                "them out."
            )

    def network_config(self, in_channels: int, out_channels: int) -> NetworkConfig:
        """Returns the configuration of the run's network."""
        custom, options = self.custom_network, self.options().network
        if custom is None:
            return options.config(in_channels, out_channels)
        return options.custom_config(custom, in_channels, out_channels)  # a function in the recipe has no settings

    @property
    def custom_network(self) -> CustomNetwork | None:
        """The network that is not a Swin UNETR, from a function of the recipe or from the registry; None for a Swin UNETR."""
        assert not isinstance(self.network, str)  # `__post_init__` has replaced it
        return self.network.custom if isinstance(self.network, Network) else CustomNetwork.of(self.network)

    def _given(self, part: str) -> str:
        """Returns what the recipe gives for a part, for messages."""
        return f"a function for `{part}`" if part in self.functions() else f"the network {self.options().network.name}"

    @property
    def objective_factory(self) -> ObjectiveFactory | None:
        """The function that returns the objective, or None for a loss of the network's logits alone."""
        if self.kind == "scans" and self.objective is None:
            return pretraining_objective(self.task, self.pretrain, self.seed)
        return DeepSupervisionFactory(self.loss) if self.deep_supervision else self.objective

    @property
    def host_augment(self) -> Augment:
        """The options of the random changes on the host."""
        return self.augment if isinstance(self.augment, Augment) else Augment()

    @property
    def device_augment(self) -> BatchAugmentation | None:
        """The function that changes a batch on the device, or None; it is also None if the recipe has an `Augmentation`."""
        return None if isinstance(self.augment, Augment | Augmentation) else self.augment

    def to_dict(self) -> dict[str, Any]:
        """Returns the options, without the functions, as JSON values."""
        return self.options().to_dict()


def _parts() -> dict[str, dataclasses.Field]:
    """Returns the fields of a recipe that may be functions: those that it declares itself, except for `NOT_PARTS`."""
    own = Recipe.__annotations__.keys() - NOT_PARTS
    return {field.name: field for field in dataclasses.fields(Recipe) if field.name in own}


def load_recipe(path: str | Path) -> Recipe:
    """Executes a Python file and returns its RECIPE.

    Raises:
        InputError: the file cannot be read or executed, or has no RECIPE.
    """
    path = Path(path).absolute()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {path} cannot be read ({files.reason(error)}): give the path of a Python file.") from error
    name = f"swinunetr_recipe_{path.stem}"
    module = importlib.util.module_from_spec(ModuleSpec(name, loader=None, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:  # a recipe may import modules of its folder, in worker processes too
        sys.path.append(str(path.parent))
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        frame = next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(path)), None)
        line = f", line {frame.lineno}" if frame is not None else ""
        raise InputError(f"the recipe {path}{line} failed with {type(error).__name__}: {error}; correct it.") from error
    recipe = getattr(module, ATTRIBUTE, None)
    if not isinstance(recipe, Recipe):
        kind = "does not" if recipe is None else f"defines it as {type(recipe).__name__}"
        raise InputError(f"{path} must define {ATTRIBUTE}, a swinunetr_jax.training.Recipe, but {kind}.")
    cloudpickle.register_pickle_by_value(module)  # worker processes cannot import it by its name
    return dataclasses.replace(recipe, name=path.stem, file=RecipeFile(path, text))
