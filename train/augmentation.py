"""The augmentation of batches on the device: its parameters for the data of a run, and the program that runs before the training step."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from swinunetr_jax import InputError, Task
from swinunetr_jax.augment import Augmentation, LowResolution, Mirror, Rotation, Run, SampleAugmentation, Scaling, map_samples
from swinunetr_jax.console import literal, say
from swinunetr_jax.data.augment.class_share import ClassShare
from swinunetr_jax.data.augment.crops import CropByLabel, ForegroundCrop, RandomCrop, SourceCrop, with_class_share
from swinunetr_jax.runtime.sharding import DATA
from swinunetr_jax.runtime.strategies import JitStrategy, ParallelStrategy
from swinunetr_jax.training import processes
from swinunetr_jax.training.crop_size import crop_size
from swinunetr_jax.training.objective import Batch
from swinunetr_jax.training.recipe import Recipe
from swinunetr_jax.training.transforms import mirrored_axes

AUGMENT = 1  # the number that separates the keys of the augmentation from others of the same seed
ANISOTROPY = (
    3.0  # an axis is thin if its voxels are longer, or its crop is shorter, by more than this factor than on the other axes
)


def sample_augmentation(
    recipe: Recipe, task: Task, affines: Sequence[np.ndarray], passes: float, samples: float = math.inf
) -> SampleAugmentation | None:
    """Returns the recipe's augmentation with all values that depend on the data, or None if the recipe does not have an `Augmentation`.

    It prints what the data do not permit, such as rotations out of a plane.

    Args:
        recipe: the recipe of the run.
        task: the task, with the size of the crop.
        affines: the affines of the prepared scans, [4, 4] each.
        passes: how often the run sees each training case.
        samples: the number of samples of the whole run.

    Raises:
        InputError: the data do not permit a transform, or the devices cannot share the crops.
    """
    augmentation = recipe.augment
    if not isinstance(augmentation, Augmentation):
        return None
    mirrors = [transform for transform in augmentation.transforms if isinstance(transform, Mirror)]
    mirrored: tuple[int, ...] = ()
    for mirror in mirrors:
        axes = mirrored_axes(mirror.axes, task, affines, passes, samples, in_recipe=True)
        mirrored = axes if mirror.axes is None else mirrored
    thin = thin_axis(crop_size(task), affines)
    labels = {value for output in task.outputs for value in output.members or (output.value,)}
    if task.kind == "images":
        labels.add(1)  # the value of a content map
    if task.ignore is not None:  # ignored voxels are resampled, too
        labels.add(task.ignore)
    sample = augmentation.for_run(Run(mirrored, thin), crop_size(task), tuple(sorted(labels)), masked=task.window is None)
    shards, source = recipe.devices.spatial_shards, sample.source_size
    if source[0] % shards:
        raise InputError(
            f"{shards} devices cannot share the {source[0]} voxels of a crop before its augmentation evenly: choose another number of "
            "spatial shards, or another roi."
        )
    moving = [transform for transform in sample.transforms if isinstance(transform, Rotation | Scaling | LowResolution)]
    if thin is not None and moving and processes.is_leader():
        names = ", ".join(dict.fromkeys(type(transform).__name__ for transform in moving))
        say(
            f"voxels or crops along axis {literal(thin)} differ from the others by a factor of more than {ANISOTROPY:g}, so that only the "
            f"plane of the other two axes is changed by {names}; --spacing resamples scans to equal voxels"
        )
    return sample


def thin_axis(size: Sequence[int], affines: Sequence[np.ndarray]) -> int | None:
    """Returns the axis along which voxels are longer, or the crop is shorter, than along both others by more than `ANISOTROPY`, or None.

    Args:
        size: the size of the crop.
        affines: the affines of the prepared scans, [4, 4] each; the median of their voxel sizes counts.
    """
    lengths = np.median([np.linalg.norm(affine[:3, :3], axis=0) for affine in affines], axis=0)
    for measure in (lengths, 1 / np.array(size)):
        axis = int(np.argmax(measure))
        if measure[axis] > ANISOTROPY * np.delete(measure, axis).max():
            return axis
    return None


def source_crop(task: Task, augmentation: SampleAugmentation, by_class: ClassShare | None = None) -> SourceCrop:
    """Returns the transform of a sample on the host: a crop at a random position, with the margin that the augmentation needs.

    Crops are chosen as without the augmentation: if the task has an intensity window (CT), they are centred on labelled and other voxels
    in turn, and otherwise they are within the foreground, as all crops are if there are no labels.
    With `by_class`, a share of the samples is centred on voxels of a class.
    """
    size = crop_size(task)
    if task.kind == "images":
        crop: RandomCrop | CropByLabel = RandomCrop(size, ForegroundCrop(above=task.window[0] if task.window else 0.0))
    elif task.window is None:
        crop = RandomCrop(size, ForegroundCrop())
    else:
        low = task.window[0]
        crop = CropByLabel(size, above=low, inside=ForegroundCrop(above=low), ignore=task.ignore)
    return SourceCrop(with_class_share(crop, by_class), augmentation.source_size)


def device_augmentation(
    recipe: Recipe, task: Task, sample: SampleAugmentation | None, strategy: ParallelStrategy
) -> Callable[[Batch], Batch]:
    """Returns the recipe's augmentation of batches as a compiled function, or a function that returns the batch unchanged.

    A sample's key is derived from the run's seed and the sample's number, so that it does not depend on devices, on processes or on where a
    run was resumed. The batch keeps its sharding.

    Args:
        recipe: the recipe of the run.
        task: its task, which states how intensities are normalised.
        sample: the recipe's `Augmentation` for this run, if it has one.
        strategy: how the devices share a batch.
    """
    augment = recipe.device_augment
    if augment is None and sample is None:
        return lambda batch: batch
    assert isinstance(strategy, JitStrategy)  # `Recipe.check` refuses the other one
    shardings = {"image": strategy.batch_sharding(5), "label": strategy.batch_sharding(4), "sample": strategy.batch_sharding(1)}
    # Each of the devices that share a volume augments all of it, because every voxel may move to the part of another device.
    by_sample = PartitionSpec(DATA)

    def augment_sample(batch_and_key: tuple[Batch, Array]) -> tuple[Array, Array]:
        assert sample is not None
        batch, key = batch_and_key
        return sample.sample(normalized(batch, task), batch["label"], key)

    @partial(jax.shard_map, mesh=strategy.mesh, in_specs=by_sample, out_specs=by_sample, check_vma=False)
    def augment_samples(batch: Batch, keys: Array) -> tuple[Array, Array]:
        return map_samples(augment_sample, (batch, keys))

    @partial(jax.jit, out_shardings=shardings)
    def run(batch: Batch) -> Batch:
        sample_key = jax.vmap(jax.random.fold_in, (None, 0))
        keys = sample_key(jax.random.fold_in(jax.random.key(recipe.seed), AUGMENT), batch["sample"].astype(jnp.uint32))
        if augment is not None:
            image, label = augment(batch["image"], batch["label"], keys)
        else:
            image, label = augment_samples(batch, keys)
        return {"image": image, "label": label, "sample": batch["sample"]}

    return run


def normalized(sample: Batch, task: Task) -> Array:
    """Returns the image of a sample, float32 [x, y, z, c], normalised as in validation unless the host has done it.

    Args:
        sample: image [x, y, z, c], and statistics [3, c] if the image is not normalised yet and has the intensities of the cache.
        task: its window, if it has one, becomes 0 to 1. Otherwise the statistics of the whole scan are used; zeros remain 0.
    """
    image = sample["image"].astype(jnp.float32)
    if "statistics" not in sample:
        return image
    if task.window is not None:
        low, high = task.window
        return jnp.clip((image - low) / (high - low), 0.0, 1.0)
    mean, factor, rest = sample["statistics"]
    return jnp.where(image == 0, 0.0, (image - mean) * factor - rest)
