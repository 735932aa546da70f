"""Small scans and the command line, for tests of predictions."""

import nibabel as nib
import numpy as np
import pytest

from swinunetr_jax import cli

BRATS = ("flair", "t1ce", "t1", "t2")


def write_case(folder, name="BraTS2021_00001", shape=(50, 40, 34), affine=None, ends=None, sep="_"):
    """Writes a file of random values for each channel into folder/name, with zeros around the brain, and returns this folder."""
    rng = np.random.default_rng(1)
    case = folder / name
    case.mkdir(parents=True)
    brain = np.ones(shape, bool)
    brain[:6] = brain[-5:] = False
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) if affine is None else affine
    for end in ends or BRATS:
        image = np.where(brain, rng.gamma(4.0, 90.0, shape), 0).astype(np.float32)
        nib.save(nib.Nifti1Image(image, affine), case / f"{name}{sep}{end}.nii.gz")
    return case


def run(*arguments):
    """Returns the exit code of the command line with these arguments."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    return stopped.value.code


def read_image(path):
    """Returns the array of a file and its nibabel image."""
    image = nib.load(path)
    return np.asarray(image.dataobj), image
