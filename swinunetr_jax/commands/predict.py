"""`swinunetr predict`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from swinunetr_jax import console
from swinunetr_jax.buckets import MAY_BE_MODEL
from swinunetr_jax.commands.cases import check_no_input_is_replaced, check_output, input_cases, is_one_file
from swinunetr_jax.commands.options import RunOptions, TaskOptions, WeightOptions
from swinunetr_jax.errors import InputError
from swinunetr_jax.files import exists, is_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swinunetr_jax.data.discovery.cases import Case
    from swinunetr_jax.inference.predict import Segmenter

EXIT_SOME_FAILED = 1


@dataclass
class Predict:
    """Segment the scans of a folder, of one case or of single files. Each result has the grid of its scan."""

    input: Annotated[tuple[Path, ...], arg(aliases=["-i"])]
    """A data set in any known layout, a case folder, a datalist, or the files of one case, one per channel. DICOM folders and zips count as
    files."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """The folder for the label maps; or for one case the label map itself, a name that ends with .nii.gz, .nii, .nrrd
    or .dcm."""
    model: Annotated[tuple[Path, ...], arg(aliases=["-m"]), MAY_BE_MODEL]
    """The model: a training run, a packed model, a checkpoint folder, a MONAI .pt file or bundle, or a safetensors file, also in a bucket
    (gs://, s3://) or on the Hugging Face hub (hf://OWNER/NAME). Several of them, or a run of all folds, are averaged as an ensemble."""
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
    format: Literal["nifti", "nrrd", "dicom-seg"] = "nifti"
    """The format of the label maps in a folder: NIfTI, NRRD with the names of 3D Slicer, or DICOM-SEG for scans that are DICOM series."""
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
    statistics: bool = False
    """Also write volumes, connected components, bounding boxes and intensities of each label: a JSON file for each case, and
    statistics.csv for all cases in the folder."""
    viewer: bool = False
    """Also write a page for each case, which shows the scan and the label map in a browser without the network."""
    recipe: Path | None = None
    """The file of the recipe, for a run whose network is neither a Swin UNETR nor registered. The file is executed."""
    base: Path | None = None
    """The folder that the paths of a dataset.json or datalist are relative to, by default the folder of that file."""
    no_postprocess: bool = False
    """Leave out the post-processing that a cross-validation (train --fold all) has chosen for its networks."""
    overwrite: bool = False
    """Predict finished cases again, and replace files that predict.json does not list."""
    running: OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)
    weights: OmitArgPrefixes[WeightOptions] = field(default_factory=WeightOptions)
    task_options: OmitArgPrefixes[TaskOptions] = field(default_factory=TaskOptions)

    def run(self) -> int:
        import jax

        from swinunetr_jax.console import name_list
        from swinunetr_jax.inference.batch import predict_cases
        from swinunetr_jax.inference.label_files import ENDINGS, check_format, generic_note
        from swinunetr_jax.inference.open_networks import open_networks
        from swinunetr_jax.inference.predict import Segmenter
        from swinunetr_jax.uncertainty import MEASURES

        self.running.apply()
        for name in ("input", "model"):
            if not getattr(self, name):
                raise InputError(f"--{name} is empty: give at least one path.")
        one_file = is_one_file(self.output)
        if one_file:
            self._check_one_file()
        else:
            check_output(self.output, "a folder, or for one case a name that ends with .nii.gz, .nii, .nrrd or .dcm")
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
        networks = open_networks(
            self.model,
            partial(self.task_options.apply, preset=self.weights.find_preset(self.task_options)),
            postprocess=not self.no_postprocess,
            network=network,
            dtype=self.dtype,
            **fields,
        )
        checkpoints, task = networks.checkpoints, networks.task
        segmenter = Segmenter(
            [checkpoint.model() for checkpoint in checkpoints],
            task,
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
            postprocess=networks.postprocess,
        )
        cases, et_label = input_cases(self.input, task, self.base)
        ending = ENDINGS[self.format]
        check_format(self.output.name if one_file else ending, cases)
        default: str | None = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue] - defined at run time
        precision = self.precision or default
        if one_file:
            with jax.default_matmul_precision(precision):
                return self._write_one_file(segmenter, cases, et_label)
        names = (
            f"{{}}{ending}",
            "{}_statistics.json",
            "{}.html",
            "{}_probabilities.nii.gz",
            *(f"{{}}_{measure}.nii.gz" for measure in MEASURES),
        )
        check_no_input_is_replaced(cases, self.output, names)
        identity = {
            "weights": [checkpoint.digest for checkpoint in checkpoints],
            "configs": [checkpoint.config.to_dict() for checkpoint in checkpoints],
            "task": task.to_dict(),
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
        if self.format == "dicom-seg" and (note := generic_note(task)):
            console.say(f"note: {console.literal(note)}")
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
                postprocess=networks.postprocess,
                label_format=self.format,
                statistics=self.statistics,
                viewer=self.viewer,
            )
        if failed:
            share = f"{len(failed)} of {len(cases)} cases" if len(cases) > 1 else "the case"
            console.say(f"{share} failed: {console.literal(name_list(failed))}", sys.stderr)
        return EXIT_SOME_FAILED if failed else 0

    def _check_one_file(self) -> None:
        """Raises InputError if an option needs a folder."""
        for name in ("probabilities", "uncertainty", "mc_dropout", "preview", "statistics", "viewer"):
            if getattr(self, name):
                option = name.replace("_", "-")
                raise InputError(f"--{option} writes further files: give a folder as --output instead of {self.output}.")
        if self.format != "nifti":
            raise InputError(
                f"--format is for a folder: the ending of --output {self.output} states the format of one label map."
            )

    def _write_one_file(self, segmenter: Segmenter, cases: Sequence[Case], et_label: int | None) -> int:
        """Segments the only case into the file --output and returns the exit code. There is no predict.json."""
        from swinunetr_jax.inference.segment_case import segment_case

        if len(cases) != 1:
            raise InputError(f"--output {self.output} names one file, but --input holds {len(cases)} cases: give a folder.")
        check_no_input_is_replaced(cases, self.output.parent, (self.output.name,))
        if not is_folder(self.output.absolute().parent):
            raise InputError(f"{self.output} cannot be written: its folder does not exist, so create it or choose another one.")
        if not self.overwrite and exists(self.output):
            raise InputError(f"{self.output} exists already: choose another name, or give --overwrite.")
        with console.Progress(console.literal(cases[0].name), unit="window") as progress:
            prepared = segmenter.prepare(cases[0])
            result = segment_case(
                segmenter, cases[0], prepared, et_label=et_label, postprocess=segmenter.postprocess, progress=progress
            )
        for note in result.notes:
            console.say(f"note: {console.literal(note)}")
        for warning in result.warnings:
            console.warn(f"{console.literal(cases[0].name)}: {console.literal(warning)}")
        result.save(self.output, overwrite=self.overwrite)
        volumes = ", ".join(f"{console.literal(name)} {ml:.1f} ml" for name, ml in result.volumes_ml.items())
        console.say(f"{volumes} → {console.literal(self.output)}")
        return 0
