"""`swinunetr saliency`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg

from swinunetr_jax import console
from swinunetr_jax.buckets import MAY_BE_MODEL
from swinunetr_jax.commands.cases import check_no_input_is_replaced, check_output, input_cases
from swinunetr_jax.commands.options import RunOptions, TaskOptions, WeightOptions
from swinunetr_jax.errors import InputError

EXIT_SOME_FAILED = 1


@dataclass
class Saliency:
    """Show which places of a scan speak for an output of a network: a heat map for each output (Grad-CAM)."""

    input: Annotated[tuple[Path, ...], arg(aliases=["-i"])]
    """A data set in any known layout, a case folder, a datalist, or the files of one case, one per channel. DICOM folders and zips count as
    files."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """The folder for the heat maps."""
    model: Annotated[Path, arg(aliases=["-m"]), MAY_BE_MODEL]
    """The model of one network: a training run, a packed model, a checkpoint folder, a MONAI .pt file or bundle, or a safetensors file,
    also in a bucket or on the Hugging Face hub."""
    layer: str = "decoder4"
    """The intermediate of the network that is mapped, such as encoder10, decoder5, decoder3, swin.stage2 or hidden3. Coarse ones show
    structures, fine ones show edges."""
    explain: tuple[str, ...] = ()
    """The names of the outputs to explain, by default all except the background."""
    roi: tuple[int, int, int] | None = None
    """The size of the windows, multiples of 32; by default the checkpoint's, otherwise 96 96 96."""
    overlap: float = 0.5
    """The fraction by which neighbouring windows overlap, at least 0 and less than 1."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """The weights of the voxels of a window where windows overlap."""
    batch: int = 1
    """The number of windows per call of the network. The gradients need several times the memory of a prediction."""
    crop: bool = False
    """Use only the bounding box of the voxels that are not background, which needs fewer windows."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the computation."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] | None = None
    """The precision of products of float32 numbers on an accelerator, as JAX names it: float32; tensorfloat32 (a TPU uses three passes of
    bfloat16 instead); or bfloat16, the default (a GPU uses tensorfloat32 instead)."""
    base: Path | None = None
    """The folder that the paths of a dataset.json or datalist are relative to, by default the folder of that file."""
    overwrite: bool = False
    """Compute finished cases again, and replace files that saliency.json does not list."""
    running: OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)
    weights: OmitArgPrefixes[WeightOptions] = field(default_factory=WeightOptions)
    task_options: OmitArgPrefixes[TaskOptions] = field(default_factory=TaskOptions)

    def run(self) -> int:
        import jax

        from swinunetr_jax.console import name_list
        from swinunetr_jax.inference.saliency import SaliencyMapper
        from swinunetr_jax.inference.saliency_batch import explain_cases, output_paths
        from swinunetr_jax.weights.load import open_checkpoint
        from swinunetr_jax.weights.run_folder import ensemble_paths

        self.running.apply()
        if not self.input:
            raise InputError("--input is empty: give at least one path.")
        check_output(self.output)
        paths = ensemble_paths(self.model)
        if len(paths) != 1:
            raise InputError(
                f"{self.model} holds {len(paths)} networks, and a map explains one of them: give one, such as {paths[0]}."
            )
        preset = self.weights.find_preset(self.task_options)
        checkpoint = open_checkpoint(paths[0], dtype=self.dtype, **self.weights.fields())
        task = self.task_options.apply(checkpoint, paths[0], preset)
        mapper = SaliencyMapper(
            checkpoint.model(),
            task,
            config=checkpoint.config,
            outputs=self.explain,
            layer=self.layer,
            roi=self.roi,
            overlap=self.overlap,
            blend=self.blend,
            batch=self.batch,
            crop=self.crop,
        )
        names = [path.name for path in output_paths(Path(), "{}", mapper.outputs).values()]
        cases, _ = input_cases(self.input, task, self.base)
        check_no_input_is_replaced(cases, self.output, names)
        default: str | None = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue] - defined at run time
        precision = self.precision or default
        identity = {
            "method": "Grad-CAM",
            "weights": checkpoint.digest,
            "config": checkpoint.config.to_dict(),
            "task": task.to_dict(),
            "layer": self.layer,
            "outputs": mapper.outputs,
            "roi": mapper.segmenter.roi,
            "overlap": self.overlap,
            "blend": self.blend,
            "crop": self.crop,
            "precision": precision,
        }
        size = "×".join(map(str, mapper.segmenter.roi))
        plural = "s" * (len(cases) != 1)
        console.say(f"{len(cases)} case{plural}, windows of {size}, overlap {self.overlap}, intermediate {self.layer}")
        with jax.default_matmul_precision(precision):
            failed = explain_cases(mapper, cases, self.output, identity=identity, overwrite=self.overwrite)
        if failed:
            share = f"{len(failed)} of {len(cases)} cases" if len(cases) > 1 else "the case"
            console.say(f"{share} failed: {console.literal(name_list(failed))}", sys.stderr)
        return EXIT_SOME_FAILED if failed else 0
