"""`swinunetr plan`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from swinunetr_jax import console, files
from swinunetr_jax.console import literal
from swinunetr_jax.errors import InputError

if TYPE_CHECKING:
    from swinunetr_jax.training.plan.measure import Measured


@dataclass(frozen=True)
class NetworkOptions:
    """The network, if the planner should not choose it."""

    feature_size: int | None = None
    """Channels at full resolution, a multiple of 12."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the computation."""
    use_checkpoint: bool | None = None
    """True or False: whether blocks are recomputed in the backward pass."""
    use_v2: bool | None = None
    """True or False: whether a residual convolution block precedes each stage."""


@dataclass
class PlanCommand:
    """Plan a training: voxel size, intensities, crop, batch and network for a data set and the memory of a device."""

    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """The data set, in any layout that `swinunetr predict` reads."""
    out: Path = Path("plan.json")
    """The file to write; a recipe with the same name and the ending .py is written next to it."""
    recipe: str | None = None
    """The recipe that the plan changes: a built-in one or a Python file; by default brats21 for the folders of BraTS and msd otherwise."""
    device: str | None = None
    """cpu, gpu or tpu of this machine, or a TPU such as v5e or v5e:2x4, which this machine need not have; by default JAX's default
    device."""
    memory: float | None = None
    """The memory of one device in GiB, by default the memory that the device reports. A step may use 92 % of it."""
    roi: tuple[int, int, int] | None = None
    """Size of the training crop, multiples of 32; by default chosen by the planner."""
    batch: int | None = None
    """Volumes per step; by default chosen by the planner."""
    spacing: tuple[float, float, float] | None = None
    """Voxel size in mm that scans are resampled to; by default chosen by the planner."""
    orientation: str | None = None
    """Orientation that scans are brought to; by default that of the recipe, or RAS."""
    window: tuple[float, float] | None = None
    """Intensities that become 0 and 1; by default chosen by the planner."""
    channels: tuple[str, ...] = ()
    """Input channels by name, by default the data set's."""
    base: Path | None = None
    """Folder that the paths of a dataset.json or datalist are relative to, by default the folder of that file."""
    network: NetworkOptions = field(default_factory=NetworkOptions)

    def run(self) -> int:
        from swinunetr_jax.training.command import find_recipe
        from swinunetr_jax.training.plan.devices import find_target
        from swinunetr_jax.training.plan.make import Given, make_plan, recipe_text, shown
        from swinunetr_jax.training.plan.plan_file import write_plan
        from swinunetr_jax.training.plan.search import Fixed

        if files.is_folder(self.out) or not files.is_folder(self.out.absolute().parent) or self.out.suffix == ".py":
            raise InputError(f"{self.out} cannot be written: give the name of a file such as plan.json in an existing folder.")
        self._check()
        recipe, _ = find_recipe(self.recipe or self._usual_recipe())
        recipe = replace(recipe, data=self.data, base=self.base or recipe.base, channels=self.channels or recipe.channels)
        target = find_target(self.device, self.memory)
        sizes = Fixed(self.roi, self.batch, **vars(self.network))
        with console.Progress("measuring cases", "case") as progress:
            plan = make_plan(
                recipe,
                target,
                Given(self.spacing, self.orientation, self.window, sizes),
                known=self._known(),
                progress=progress,
                say=console.say,
            )
        write_plan(self.out, plan)
        recipe_path = self.out.with_suffix(".py")
        files.write_text(recipe_path, recipe_text(plan, self.out.name))
        for line in shown(plan):
            console.say(literal(line))
        console.say(literal(f"→ {self.out}, {recipe_path}; train with: swinunetr train {recipe_path} --data {self.data}"))
        return 0

    def _check(self) -> None:
        """Raises InputError for an option whose value no training can use."""
        from swinunetr_jax.config import SwinUNETRConfig
        from swinunetr_jax.task import Task

        config = SwinUNETRConfig(in_channels=1, out_channels=2)
        if self.network.feature_size is not None:
            config = replace(config, feature_size=self.network.feature_size)
        if self.roi is not None:
            config.check_spatial(self.roi)
        if self.batch is not None and self.batch < 1:
            raise InputError(f"--batch is {self.batch}, expected at least 1.")
        window = {} if self.window is None else {"intensity": "window", "window": self.window}
        Task.classes(2, spacing=self.spacing, orientation=self.orientation, **window)

    def _usual_recipe(self) -> str:
        """Returns the recipe for the data set's layout."""
        from swinunetr_jax.data.discovery.formats import find_cases

        return "brats21" if find_cases(self.data, base=self.base).et_label is not None else "msd"

    def _known(self) -> Measured | None:
        """Returns the measurement in an earlier plan of the same name, or None."""
        from swinunetr_jax.training.plan.plan_file import read_plan

        try:
            return read_plan(self.out).measured if files.exists(self.out) else None
        except InputError as error:
            console.warn(f"{literal(error)} The file is replaced.")
            return None
