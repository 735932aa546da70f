"""A recipe: the options of a run, and the functions that take the place of the trainer's own parts.

A recipe is the value RECIPE of a Python file, one of `train/recipes/` or any other. Its functions are executed from that file, in a resumed
run too; the text that is kept in the run's folder is compared with the file and never executed.
"""

import dataclasses
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import optax
from jax import Array

from swinunetr_jax import InputError, Task
from swinunetr_jax.data.augment.transforms import Transform
from swinunetr_jax.losses import Loss
from swinunetr_jax.model.custom import CustomConfig, NetworkFactory
from swinunetr_jax.training.config import Augment, Network, Options, flat
from swinunetr_jax.training.objective import LossFunction, ObjectiveFactory
from swinunetr_jax.weights.params import NetworkConfig

ATTRIBUTE = "RECIPE"
# The options that a function takes the place of, by the beginning of their dotted names.
REPLACED = {
    "network": ("network.",),
    "loss": ("loss.",),
    "objective": ("loss.",),
    "augment": ("augment.",),
    "transforms": ("augment.",),
    "optimizer": tuple(f"optim.{name}" for name in ("lr", "weight_decay", "betas", "schedule", "power", "warmup", "clip")),
}

Optimizer = optax.GradientTransformation | tuple[optax.GradientTransformation, optax.Schedule]
BatchAugmentation = Callable[[Array, Array, Array], tuple[Array, Array]]
"""(images [b, x, y, z, c], label maps [b, x, y, z], keys [b]) -> the same, changed at random by each sample's key."""


@dataclass(frozen=True)
class RecipeFile:
    """The file that a recipe was read from: its absolute path, and its text at that time."""

    path: Path
    text: str


@dataclass(frozen=True, kw_only=True)
class Recipe(Options):
    """A training run: its options, of which some can be functions, and further functions.

    Attributes:
        network: options of a Swin UNETR, or (in_channels, out_channels, *, rngs) -> `flax.nnx.Module`, for example a class. The module is
            called as `model(x, key=None, train=False)` with x [b, x, y, z, in_channels] and returns logits [b, x, y, z, out_channels].
        loss: options of the Dice loss, or (logits, labels, task) -> a number.
        augment: options of the random changes on the host, or a function of a batch on the device, see `BatchAugmentation`. It is a
            program of its own that runs before the training step; the samples' keys depend on the seed and the samples' numbers alone.
        objective: (task, config, rngs) -> an `Objective` or a function (model, batch, key) -> loss, or loss and metrics; it takes the
            place of `loss`.
        transforms: (task) -> the transforms of a sample on the host, which take the place of the crop, the normalisation and the
            random changes of `augment`. The last one must give arrays of one size.
        optimizer: (number of steps) -> an optax transformation, or the pair of that and its schedule of learning rates, which is then
            logged. It takes the place of AdamW and the options of `optim`, but for the batch's parts and the average of the weights.
        file: where the recipe was read from.
    """

    network: Network | NetworkFactory = dataclasses.field(default_factory=Network)
    loss: Loss | LossFunction = dataclasses.field(default_factory=Loss)
    augment: Augment | BatchAugmentation = dataclasses.field(default_factory=Augment)
    objective: ObjectiveFactory | None = None
    transforms: Callable[[Task], Sequence[Transform]] | None = None
    optimizer: Callable[[int], Optimizer] | None = None
    file: RecipeFile | None = None

    def functions(self) -> dict[str, Any]:
        """The parts that are functions, by the name of the field."""
        mixed = {"network": Network, "loss": Loss, "augment": Augment}
        given = {name: getattr(self, name) for name in ("objective", "transforms", "optimizer")}
        given |= {name: getattr(self, name) for name, kind in mixed.items() if not isinstance(getattr(self, name), kind)}
        return {name: function for name, function in given.items() if function is not None}

    def options(self) -> Options:
        """The options alone, with the default in the place of each function."""
        functions = self.functions()
        return Options(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Options) if f.name not in functions})

    def with_options(self, options: Options) -> "Recipe":
        """The recipe with other options and its own functions.

        Raises:
            InputError: an option was given of a part that is a function.
        """
        functions = self.functions()
        given, defaults = flat(options.to_dict()), flat(self.options().to_dict())
        for part in functions:
            useless = [name for name in given if name.startswith(REPLACED[part]) and given[name] != defaults[name]]
            if useless:
                raise InputError(
                    f"--{useless[0].replace('_', '-')} has no effect here, since the recipe gives a function for `{part}`: leave it out."
                )
        return dataclasses.replace(self, **vars(options) | functions)

    def check(self) -> None:
        """Raises InputError for a value that no run can have."""
        options = self.options()
        # which crops a network takes is known of Swin UNETR alone
        (options if self.network_factory is None else dataclasses.replace(options, roi=None)).check()
        functions = self.functions()
        if "objective" in functions and "loss" in functions:
            raise InputError(
                "the recipe gives a function for `loss` and one for `objective`, which replaces the loss: leave one out."
            )
        for name, function in functions.items():
            if not callable(function):
                raise InputError(f"`{name}` of the recipe must be options or a function, got {type(function).__name__}.")
        if "augment" in functions and options.devices.pmap:
            raise InputError(
                "the recipe changes batches on the device, and `devices.pmap` has no batch but each device's samples: leave one out."
            )

    def network_config(self, in_channels: int, out_channels: int) -> NetworkConfig:
        """The configuration of the run's network."""
        if isinstance(self.network, Network):
            return self.network.config(in_channels, out_channels)
        return CustomConfig(self.network, in_channels, out_channels)

    @property
    def network_factory(self) -> NetworkFactory | None:
        """What makes the network where it is not a Swin UNETR."""
        return None if isinstance(self.network, Network) else self.network

    @property
    def host_augment(self) -> Augment:
        """The options of the random changes on the host."""
        return self.augment if isinstance(self.augment, Augment) else Augment()

    @property
    def device_augment(self) -> BatchAugmentation | None:
        """The function that changes a batch on the device, if there is one."""
        return None if isinstance(self.augment, Augment) else self.augment

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values, for JSON; functions are no part of them."""
        return self.options().to_dict()


def load_recipe(path: str | Path) -> Recipe:
    """Executes a Python file and returns its RECIPE.

    Raises:
        InputError: the file cannot be read or executed, or has no RECIPE.
    """
    path = Path(path).absolute()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {path} cannot be read ({error}): give a Python file.") from error
    name = f"swinunetr_recipe_{path.stem}"
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader=None, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:  # a recipe may import its neighbours, in worker processes too
        sys.path.append(str(path.parent))
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        frame = next((f for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(path)), None)
        line = f", line {frame.lineno}" if frame is not None else ""
        raise InputError(f"the recipe {path}{line} failed with {type(error).__name__}: {error}; mend it.") from error
    recipe = getattr(module, ATTRIBUTE, None)
    if not isinstance(recipe, Recipe):
        kind = "none" if recipe is None else f"one of type {type(recipe).__name__}"
        raise InputError(f"{path} must define {ATTRIBUTE}, a swinunetr_jax.training.Recipe, and has {kind}.")
    cloudpickle.register_pickle_by_value(module)  # worker processes cannot import it by its name
    return dataclasses.replace(recipe, name=path.stem, file=RecipeFile(path, text))
