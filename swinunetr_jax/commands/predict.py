"""`swinunetr predict`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from swinunetr_jax import console
from swinunetr_jax.buckets import MAY_BE_ADDRESS
from swinunetr_jax.buckets.fetch import optional_file
from swinunetr_jax.commands.cases import check_no_input_is_replaced, check_output, input_cases
from swinunetr_jax.commands.options import TaskOptions, WeightOptions
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task

if TYPE_CHECKING:
    from swinunetr_jax.postprocess import Step

EXIT_SOME_FAILED = 1


@dataclass
class Predict:
    """Segment the scans of a folder, of one case or of single files. Each result has the grid of its scan."""

    input: Annotated[tuple[Path, ...], arg(aliases=["-i"])]
    """A data set in any known layout, a case folder, a datalist, or the files of one case, one per channel."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """The folder for the label maps."""
    model: Annotated[tuple[Path, ...], arg(aliases=["-m"]), MAY_BE_ADDRESS]
    """The checkpoint, also in a bucket: a training run, a checkpoint folder, a MONAI .pt or a safetensors file. Several of them, or a run
    of all folds, are averaged as an ensemble."""
    roi: tuple[int, int, int] | None = None
    """The size of the windows, multiples of 32; by default the checkpoint's, otherwise 96 96 96."""
    overlap: float = 0.5
    """The fraction by which neighbouring windows overlap, at least 0 and less than 1."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """The weights of the voxels of a window where windows overlap."""
    batch: int = 1
    """The number of windows per call of the network."""
    mirror: bool = False
    """Average over mirrored windows too, which takes up to 8 times as long. Axes along which labels name sides, such as
    "left kidney", are not mirrored."""
    crop: bool = False
    """Predict only inside the bounding box of the voxels that are not background. This needs fewer windows, at other positions."""
    whole: bool = False
    """Give the network the whole scan at once instead of windows."""
    spatial_shards: int = 1
    """The number of devices among which each window, or the whole scan, is divided along its first axis, so that each needs less memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the computation."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] | None = None
    """The precision of products of float32 numbers on an accelerator, as JAX names it: float32; tensorfloat32 (a TPU uses three passes of
    bfloat16 instead); or bfloat16, the default (a GPU uses tensorfloat32 instead)."""
    probabilities: bool = False
    """Also write the probabilities of all outputs as a 4-D file."""
    uncertainty: bool = False
    """Also write maps of the disagreement of the networks, of the mirrored windows with --mirror, or of draws of dropout: the predictive
    entropy, the mutual information and the variance. The label map is the same as without, apart
    from single voxels where rounding decides between two labels."""
    mc_dropout: int = 0
    """The number of draws of dropout for --uncertainty, which it implies, such as 10. Each draw takes as long as a prediction."""
    drop_rate: float | None = None
    """The rate of dropout for --mc-dropout, if it is not that of the training."""
    seed: int = 0
    """The seed of the draws of dropout."""
    preview: bool = False
    """Also write a picture of each case."""
    recipe: Path | None = None
    """The file of the recipe, for a run whose network is neither a Swin UNETR nor registered. The file is executed."""
    base: Path | None = None
    """The folder that the paths of a dataset.json or datalist are relative to, by default the folder of that file."""
    no_postprocess: bool = False
    """Leave out the post-processing that a cross-validation (train --fold all) has chosen for its networks."""
    overwrite: bool = False
    """Predict finished cases again, and replace files that predict.json does not list."""
    weights: OmitArgPrefixes[WeightOptions] = field(default_factory=WeightOptions)
    task_options: OmitArgPrefixes[TaskOptions] = field(default_factory=TaskOptions)

    def run(self) -> int:
        import jax

        from swinunetr_jax.console import name_list
        from swinunetr_jax.inference.batch import predict_cases
        from swinunetr_jax.inference.predict import Segmenter
        from swinunetr_jax.uncertainty import MEASURES
        from swinunetr_jax.weights.load import open_checkpoint
        from swinunetr_jax.weights.run_folder import ensemble_paths, missing_folds

        for name in ("input", "model"):
            if not getattr(self, name):
                raise InputError(f"--{name} is empty: give at least one path.")
        check_output(self.output)
        for model in self.model:
            if warning := missing_folds(model):
                console.warn(console.literal(warning))
        paths = [path for model in self.model for path in ensemble_paths(model)]
        network = None
        if self.recipe is not None:
            from swinunetr_jax.training import load_recipe

            network = load_recipe(self.recipe).custom_network
        fields = self.weights.fields()
        if self.seed and not self.mc_dropout:
            raise InputError("--seed is for draws of dropout: give their number with --mc-dropout, such as 10.")
        if self.drop_rate is not None:
            if not self.mc_dropout:
                raise InputError("--drop-rate is for draws of dropout: give their number with --mc-dropout, such as 10.")
            fields["drop_rate"] = self.drop_rate
        checkpoints = [open_checkpoint(path, dtype=self.dtype, network=network, **fields) for path in paths]
        tasks = [self.task_options.apply(checkpoint, path) for checkpoint, path in zip(checkpoints, paths)]
        for path, task in zip(paths, tasks):
            if task != tasks[0]:
                raise InputError(f"{path} was trained for another task than {paths[0]}: an ensemble needs networks of one task.")
        if len(paths) > 1:
            console.say(
                f"an ensemble of {len(paths)} networks, whose logits are averaged: {', '.join(map(console.literal, paths))}"
            )
        postprocess = () if self.no_postprocess else self._postprocess(tasks[0])
        segmenter = Segmenter(
            [checkpoint.model() for checkpoint in checkpoints],
            tasks[0],
            configs=[checkpoint.config for checkpoint in checkpoints],
            roi=self.roi,
            overlap=self.overlap,
            blend=self.blend,
            batch=self.batch,
            mirror=self.mirror,
            crop=self.crop,
            whole=self.whole,
            spatial_shards=self.spatial_shards,
            uncertainty=self.uncertainty,
            mc_dropout=self.mc_dropout,
            seed=self.seed,
        )
        cases, et_label = input_cases(self.input, tasks[0], self.base)
        names = ("{}.nii.gz", "{}_probabilities.nii.gz", *(f"{{}}_{measure}.nii.gz" for measure in MEASURES))
        check_no_input_is_replaced(cases, self.output, names)
        default: str | None = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue] - defined at run time
        precision = self.precision or default
        identity = {
            "weights": [checkpoint.digest for checkpoint in checkpoints],
            "configs": [checkpoint.config.to_dict() for checkpoint in checkpoints],
            "task": tasks[0].to_dict(),
            "roi": "whole" if self.whole else segmenter.roi,
            "overlap": self.overlap,
            "blend": self.blend,
            "mirror": "without sided axes" if self.mirror else False,
            "crop": self.crop,
            "precision": precision,
        }
        # without uncertainty the settings are those of earlier versions, so that their finished cases are skipped
        if segmenter.uncertainty:
            identity["uncertainty"] = {"mc_dropout": self.mc_dropout}
            if self.mc_dropout:
                identity["uncertainty"] |= {"seed": self.seed, "batch": self.batch}
        windows = f"windows of {'×'.join(map(str, segmenter.roi))}, overlap {self.overlap}"
        console.say(f"{len(cases)} case{'s' * (len(cases) != 1)}, {'without windows' if self.whole else windows}")
        with jax.default_matmul_precision(precision):
            failed = predict_cases(
                segmenter,
                cases,
                self.output,
                identity=identity,
                probabilities=self.probabilities,
                preview=self.preview,
                uncertainty=segmenter.uncertainty,
                overwrite=self.overwrite,
                et_label=et_label,
                postprocess=postprocess,
            )
        if failed:
            console.say(f"{len(failed)} of {len(cases)} cases failed: {console.literal(name_list(failed))}", sys.stderr)
        return EXIT_SOME_FAILED if failed else 0

    def _postprocess(self, task: Task) -> tuple[Step, ...]:
        """Returns the operations that a cross-validation has chosen for all given networks together, and prints them.

        Raises:
            InputError: the file with the operations is damaged, or was written for other labels.
        """
        from swinunetr_jax.postprocess import POSTPROCESS, check_task, read_postprocess
        from swinunetr_jax.weights.run_folder import cross_validation_of

        steps: dict[Path | None, tuple[Step, ...]] = {}  # by the folder of the cross-validation
        for folder in {cross_validation_of(model): None for model in self.model}:
            steps[folder] = ()
            file = None if folder is None else optional_file(folder / POSTPROCESS)
            if file is not None:
                chosen = read_postprocess(file)
                if chosen.steps:
                    check_task(file, chosen, task)
                steps[folder] = chosen.steps
        choices = {chosen for chosen in steps.values() if chosen}
        if not choices:
            return ()
        sources = ", ".join(console.literal(folder / POSTPROCESS) for folder, chosen in steps.items() if folder and chosen)
        if len(steps) > 1:
            console.warn(
                f"no post-processing is applied, because the one in {sources} was chosen for only some of these networks."
            )
            return ()
        (chosen,) = choices
        text = ", then ".join(console.literal(step) for step in chosen)
        console.say(
            f"post-processing of the label maps: {text} (chosen on out-of-fold cases, {sources}; --no-postprocess leaves it out)"
        )
        return chosen
