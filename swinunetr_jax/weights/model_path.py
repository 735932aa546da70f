"""Finds what a user names as a model: a model on the Hugging Face hub is downloaded, and a zip archive in a bucket is copied."""

import os
from pathlib import Path

from swinunetr_jax import files
from swinunetr_jax.buckets import Bucket, is_address, is_hub_address, path_or_address
from swinunetr_jax.buckets.fetch import copy_object, exists
from swinunetr_jax.buckets.scratch import scratch_file
from swinunetr_jax.weights.zip_folder import find_zip


def model_path(path: str | os.PathLike) -> Path:
    """Returns the path of a model on this machine, or its address in a bucket if it is a folder or a single weight file there.

    Args:
        path: a path, the address of a model on the hub or of a model in a bucket; also of a network in a zip archive, such as
            gs://bucket/model.zip/fold0.

    Raises:
        InputError: the address cannot be used, or what is there cannot be read.
    """
    if is_hub_address(path):
        from swinunetr_jax.weights.hub import download

        return download(path)
    path = path_or_address(path)
    if not is_address(path):
        return path
    for place in (path, *path.parents):
        if place.suffix == ".zip" and (stored := Bucket(place).objects().get("")):
            with files.locked(scratch_file(place).parent):
                return copy_object(place, stored) / path.relative_to(place)
    return path


def model_exists(path: str | os.PathLike) -> bool:
    """Returns whether there is something at the path or address of a model. Raises the errors of `model_path`."""
    found = model_path(path)
    return exists(found) or (not is_address(found) and find_zip(found) is not None)
