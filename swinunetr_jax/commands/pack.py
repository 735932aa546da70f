"""`swinunetr pack`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from swinunetr_jax import console, files
from swinunetr_jax.buckets import MAY_BE_ADDRESS, MAY_BE_MODEL, is_address, shown
from swinunetr_jax.commands.options import TaskOptions, WeightOptions
from swinunetr_jax.errors import InputError

if TYPE_CHECKING:
    from swinunetr_jax.packages.model_card import Card


@dataclass
class Pack:
    """Pack a trained model to pass on: one zip archive with which `predict -m` needs nothing else, or the folder of a MONAI bundle."""

    source: Annotated[Positional[Path], arg(metavar="RUN"), MAY_BE_MODEL]
    """A training run, a cross-validation (all its folds are packed), a checkpoint folder or a weight file, also in a bucket."""
    target: Annotated[Positional[Path], arg(metavar="MODEL"), MAY_BE_ADDRESS]
    """The archive to write, a name that ends with .zip, also in a bucket; or the folder of a MONAI bundle."""
    format: Literal["zip", "monai-bundle"] = "zip"
    """monai-bundle writes a folder instead of an archive, with one network, which `monai.bundle` loads and runs."""
    name: str | None = None
    """The name of the model, for its card."""
    data: str | None = None
    """The scans that it was trained on, with their source, for its card."""
    licence: str | None = None
    """The licence of the weights, such as cc-by-4.0, for its card."""
    intended_use: str | None = None
    """The intended use of the model, for its card."""
    limits: str | None = None
    """The known limits of the model, for its card: uses that it is not fit for, and uses that were not tested."""
    card: Path | None = None
    """A model card in Markdown, instead of the five options above, whose statements are otherwise those of the card of a packed model RUN.
    The facts of the files are added to it."""
    overwrite: bool = False
    """Replace MODEL if it exists."""
    weights: OmitArgPrefixes[WeightOptions] = field(default_factory=WeightOptions)
    task_options: OmitArgPrefixes[TaskOptions] = field(default_factory=TaskOptions)

    def run(self) -> int:
        from swinunetr_jax.packages.pack import collect, digest_of, pack, pack_bundle
        from swinunetr_jax.weights.load import open_checkpoint
        from swinunetr_jax.weights.run_folder import ensemble_paths, missing_folds

        card = self._card()
        if warning := missing_folds(self.source):
            console.warn(console.literal(warning))
        paths = ensemble_paths(self.source)
        preset = self.weights.find_preset(self.task_options)
        checkpoints = [open_checkpoint(path, **self.weights.fields()) for path in paths]
        tasks = [self.task_options.apply(checkpoint, path, preset) for checkpoint, path in zip(checkpoints, paths)]
        networks = collect(paths, checkpoints, tasks)
        if self.format == "monai-bundle":
            pack_bundle(self.source, networks, self.target, card)
        else:
            pack(self.source, networks, self.target, card, overwrite=self.overwrite)
        plural = "s" * (len(paths) != 1)
        console.say(f"{shown(self.source)} → {shown(self.target)}, {len(paths)} network{plural}")
        if self.format == "zip" and not is_address(self.target):
            console.say(f"SHA-256 {digest_of(self.target)}")
        if missing := card.missing():
            options = ", ".join(f"--{name.replace(' ', '-')}" for name in missing)
            console.say(f"the model card says that nobody has stated its {', '.join(missing)}: give {options}, or --card FILE")
        return 0

    def _card(self) -> "Card":
        """Returns the user's statements. Raises InputError if the file cannot be read, or was given together with single statements."""
        from swinunetr_jax.packages.model_card import Card
        from swinunetr_jax.packages.pack import packed_card

        parts = {n: getattr(self, n) for n in ("name", "data", "licence", "intended_use", "limits")}
        given = [f"--{name.replace('_', '-')}" for name, value in parts.items() if value is not None]
        if self.card is None:
            earlier = packed_card(self.source)
            if earlier.text is None:
                return replace(earlier, **{name: value for name, value in parts.items() if value is not None})
            if not given:
                return earlier
            raise InputError(
                f"the card of {self.source} is a whole one, which {', '.join(given)} would be part of: give the new card with --card FILE."
            )
        if given:
            raise InputError(f"--card is a whole model card, which {', '.join(given)} would be part of: leave one of them out.")
        try:
            return Card(text=self.card.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.card} cannot be read ({files.reason(error)}), expected a text in Markdown: check it."
            ) from error
