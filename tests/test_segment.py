"""`swinunetr_jax.segment`: files and images in memory give the bytes of `swinunetr predict`."""

import nibabel as nib
import numpy as np
import pytest
from flax import nnx
from helpers.prediction import read_image, run, write_case
from helpers.refusals import refused
from helpers.small_network import SmallNetwork, forget, replace_swin_unetr

from swinunetr_jax import SwinUNETRConfig, Task, open_segmenter, save_checkpoint, segment

# Voxels of 0.9 × 1.2 × 2 mm, whose first axis points to the front and the second to the left, tilted by 36.87° around the first.
OBLIQUE = np.array([[0, -0.96, 1.2, 30], [0.9, 0, 0, -20], [0, 0.72, 1.6, 5], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Returns a folder with networks for four channels of BraTS, and for one image."""
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("networks")
    replace_swin_unetr(patch)
    for name, channels, task in (("brats", 4, Task.brats(roi=(64, 32, 32))), ("one", 1, Task.classes(2, roi=(64, 32, 32)))):
        config = SwinUNETRConfig(in_channels=channels, out_channels=len(task.outputs), feature_size=12, depths=(1, 1, 1, 1))
        save_checkpoint(folder / name, SmallNetwork(config, rngs=nnx.Rngs(0)), task=task)
    yield folder
    patch.undo()
    forget()


@pytest.fixture(scope="module")
def one(networks):
    return open_segmenter(networks / "one")


def scan(affine=OBLIQUE, dtype=np.int16):
    array = np.random.default_rng(0).normal(100, 30, (40, 33, 35)).astype(dtype)
    return nib.Nifti1Image(array, affine)


def test_a_case_of_files_has_the_bytes_of_predict(networks, tmp_path, capsys):
    case = write_case(tmp_path)
    assert (
        run("predict", "-i", case, "-o", tmp_path / "out", "-m", networks / "brats", "--overlap", "0.25", "--probabilities") == 0
    )
    expected = (tmp_path / "out/BraTS2021_00001.nii.gz").read_bytes()
    segmenter = open_segmenter(networks / "brats", overlap=0.25)
    files = [case / f"BraTS2021_00001_{channel}.nii.gz" for channel in ("t1", "t2", "flair", "t1ce")]
    by_channel = {path.name.split("_")[-1].removesuffix(".nii.gz"): nib.load(path) for path in files}
    for number, images in enumerate((case, files, by_channel)):
        result = segment(images, segmenter, probabilities=True)
        assert result.save(tmp_path / f"{number}.nii.gz").read_bytes() == expected
    probabilities = (tmp_path / "out/BraTS2021_00001_probabilities.nii.gz").read_bytes()
    assert result.save_probabilities(tmp_path / "p.nii.gz").read_bytes() == probabilities
    assert set(result.volumes_ml) == {"TC", "WT", "ET"} and repr(result).startswith("Segmentation(50×40×34 voxels: TC ")


def test_images_in_memory_have_the_bytes_of_their_file(networks, one, tmp_path, capsys):
    nib.save(scan(), tmp_path / "scan.nii.gz")
    assert run("predict", "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "-m", networks / "one") == 0
    expected, image = read_image(tmp_path / "out/scan.nii.gz")
    assert 0 < expected.mean() < 1  # both labels occur
    for images in (tmp_path / "scan.nii.gz", nib.load(tmp_path / "scan.nii.gz"), scan()):
        result = segment(images, one)
        np.testing.assert_array_equal(result.labels, expected)
        saved = result.save(tmp_path / "labels.nii.gz", overwrite=True)
        assert saved.read_bytes() == (tmp_path / "out/scan.nii.gz").read_bytes()
    array = np.asarray(scan().dataobj)
    result = segment(array, one, affine=OBLIQUE)
    np.testing.assert_array_equal(result.labels, expected)
    saved = nib.load(result.save(tmp_path / "array.nii"))
    np.testing.assert_allclose(saved.affine, image.affine, atol=1e-6)
    assert saved.get_data_dtype() == np.uint8


def test_an_image_of_simpleitk_has_its_own_grid(one, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    nib.save(scan(), tmp_path / "scan.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    result = segment(image, one)
    expected = segment(tmp_path / "scan.nii.gz", one)
    np.testing.assert_array_equal(result.labels, expected.labels)
    np.testing.assert_allclose(result.affine, expected.affine, atol=1e-4)
    back = sitk.ReadImage(str(result.save(tmp_path / "labels.nii.gz")))
    np.testing.assert_allclose(back.GetOrigin(), image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(back.GetDirection(), image.GetDirection(), atol=1e-4)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back).transpose(2, 1, 0), expected.labels)
    with refused("has 2 axes, expected three"):
        segment(image[:, :, 3], one)


def test_predict_writes_one_file_for_one_case(networks, tmp_path, capsys):
    nib.save(scan(), tmp_path / "scan.nii.gz")
    command = ("predict", "-i", tmp_path / "scan.nii.gz", "-m", networks / "one", "-o")
    assert run(*command, tmp_path / "out") == 0
    assert run(*command, tmp_path / "labels.nii.gz") == 0
    assert (tmp_path / "labels.nii.gz").read_bytes() == (tmp_path / "out/scan.nii.gz").read_bytes()
    assert "→" in capsys.readouterr().out.splitlines()[-1] and not (tmp_path / "predict.json").exists()
    for options, text in (
        ((tmp_path / "labels.nii.gz",), "labels.nii.gz exists already: choose another name, or give --overwrite"),
        ((tmp_path / "more.nii.gz", "--probabilities"), "--probabilities writes further files: give a folder as --output"),
        ((tmp_path / "scan.nii.gz", "--overwrite"), "is a scan or a label of the input"),
        ((tmp_path / "no/labels.nrrd",), "cannot be written: its folder does not exist"),
        ((tmp_path / "labels.mha",), "names a file, but results are written into a folder"),
    ):
        assert run(*command, *options) == 2
        assert text in capsys.readouterr().err
    write_case(tmp_path / "two"), write_case(tmp_path / "two", "BraTS2021_00002")
    assert run("predict", "-i", tmp_path / "two", "-m", networks / "brats", "-o", tmp_path / "all.nii.gz") == 2
    assert "names one file, but --input holds 2 cases: give a folder" in capsys.readouterr().err


def test_faults_are_one_sentence(networks, one, tmp_path, capsys):
    array = np.asarray(scan().dataobj)
    for images, options, text in (
        (array, {}, "the image is an array, whose voxel size and orientation are unknown: give `affine`"),
        (array, {"affine": np.eye(3)}, "the affine of the image has shape (3, 3)"),
        (array, {"affine": np.zeros((4, 4))}, "the image: the affine [[0. 0. 0. 0.]"),
        (array[0], {"affine": np.eye(4)}, "the image has shape (33, 35)"),
        (np.where(array > 150, np.nan, array), {"affine": np.eye(4)}, "voxels are NaN or Inf, the first at"),
        ([array, array], {"affine": np.eye(4)}, "has 2 channels in 2 files, the network takes 1"),
        ([], {}, "`images` is empty"),
        (object(), {}, "the image has the type object of object, expected a path, an image of nibabel or SimpleITK, or an array"),
        (array.astype(complex), {"affine": np.eye(4)}, "the image has the type ndarray of complex128"),
        (nib.Nifti1Image(array.astype(np.complex64), np.eye(4)), {}, "the image has the type Nifti1Image of complex64"),
        (array, {"affine": "RAS"}, "the affine of the image is not an array of numbers"),
        (tmp_path / "scan.nii.gz", {"affine": np.eye(4)}, "`affine` is for an array, but the images are files"),
        (tmp_path / "nothing.nii.gz", {}, "nothing.nii.gz"),
        (array, {"affine": np.eye(4), "overlap": 0.5}, "overlap: give the options to `open_segmenter`"),
    ):
        with refused(text):
            segment(images, one, **options)
    write_case(tmp_path / "two"), write_case(tmp_path / "two", "BraTS2021_00002")
    with refused("holds 2 cases, and `segment` takes one"):
        segment(tmp_path / "two", one)
    result = segment(array, one, affine=np.eye(4))
    with refused("the probabilities were not requested"):
        result.save_probabilities(tmp_path / "p.nii.gz")
    with refused(r"labels.png: the ending is not supported, expected .nii or .nii.gz or .nrrd or .dcm"):
        result.save(tmp_path / "labels.png")
    result.save(tmp_path / "labels.nii.gz")
    with refused("exists already"):
        result.save(tmp_path / "labels.nii.gz")
