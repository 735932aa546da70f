"""Written NIfTI files keep the grid of their source exactly, and are complete or absent."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.nifti_files import COUNT, LPS, oblique, patch, save, volume_of
from helpers.refusals import refused

from swinunetr_jax.data.nifti import check_same_grid, read_labels, read_volume, write_volume
from swinunetr_jax.data.nifti.write import WRITABLE

pytestmark = pytest.mark.usefixtures("nothing_printed")


@pytest.mark.parametrize(
    "affine", [LPS, np.diag([1, 1, 1, 1]), oblique(), LPS[[1, 2, 0, 3]]], ids=["LPS", "RAS", "oblique", "permuted"]
)
@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 1), (0, 0), (3, 4)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_results_have_the_grid_of_their_source(tmp_path, affine, codes, kind):
    image = kind(COUNT.astype(np.int16), affine)
    header = image.header
    header.set_qform(affine, codes[0])
    header.set_sform(affine if codes[1] else None, codes[1])
    header.set_xyzt_units("micron", "msec")
    header["cal_max"], header["descrip"], header["intent_code"], header["intent_name"] = 900, b"Jane Doe", 5, b"z-score"
    nib.save(image, tmp_path / "a.nii.gz")
    patch(tmp_path / "a.nii.gz", scl_slope=0.5, scl_inter=3)
    source = nib.load(tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    path = write_volume(tmp_path / "out.nii.gz", COUNT, volume)

    written = nib.load(path)
    assert type(written) is kind and written.get_data_dtype() == np.uint8 and written.shape == (2, 3, 4)
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), COUNT)
    np.testing.assert_array_equal(written.affine, source.affine)
    for field in ("qform_code", "sform_code", "xyzt_units", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
        np.testing.assert_array_equal(written.header[field], source.header[field])
    np.testing.assert_array_equal(written.header["pixdim"], source.header["pixdim"])
    raw = gzip.decompress(path.read_bytes())
    raw = type(source.header)(raw[: source.header.sizeof_hdr])
    assert (raw["scl_slope"], raw["scl_inter"], raw["cal_max"], raw["intent_code"]) == (1, 0, 0, 0)
    assert raw["descrip"] == b"swinunetr_jax" and raw["intent_name"] == b"" and raw["vox_offset"] == raw.single_vox_offset
    check_same_grid([volume, read_labels(path)])


def test_written_types_and_channels(tmp_path):
    source = volume_of()
    for dtype in WRITABLE:
        written = nib.load(write_volume(tmp_path / "a.nii", COUNT, source, dtype))
        assert written.get_data_dtype() == dtype
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), COUNT)
    probabilities = np.random.default_rng(0).random((2, 3, 4, 3), np.float32)
    np.testing.assert_array_equal(
        read_volume(write_volume(tmp_path / "p.nii.gz", probabilities, source, np.float32)).array, probabilities
    )
    np.testing.assert_array_equal(read_labels(write_volume(tmp_path / "b.nii.gz", COUNT > 5, source)).array, COUNT > 5)
    write_volume(tmp_path / "c.nii.gz", COUNT, volume_of((2, 3, 4, 4)))  # a label map for an image of four channels
    write_volume(tmp_path / "d.nii.gz", np.asfortranarray(COUNT)[..., ::-1], source)
    np.testing.assert_array_equal(read_labels(tmp_path / "d.nii.gz").array, COUNT[..., ::-1])


def test_equal_results_are_equal_bytes(tmp_path):
    first = write_volume(tmp_path / "a.nii.gz", COUNT, volume_of()).read_bytes()
    assert write_volume(tmp_path / "b.nii.gz", COUNT, volume_of(name="other.nii.gz")).read_bytes() == first
    assert first[4:8] == bytes(4)  # gzip's time stamp


def test_values_that_do_not_fit_are_refused(tmp_path):
    source, path = volume_of(), tmp_path / "a.nii.gz"
    for value in (-1, 256, 0.5, np.nan, np.inf):
        array = COUNT.astype(np.float64)
        array[1, 0, 2] = value
        with refused(path, value, "(1, 0, 2)", "uint8"):
            write_volume(path, array, source)
    for value in (np.nan, 1e300):
        array[1, 0, 2] = value
        with refused(path, "float32"):
            write_volume(path, array, source, np.float32)
    for dtype in (np.int64, np.float64, np.float16, bool):
        with refused(path, "data type"):
            write_volume(path, COUNT, source, dtype)
    for shape in ((2, 3, 5), (4, 3, 2), (2, 3), (2, 3, 4, 1, 1)):
        with refused(path, shape):
            write_volume(path, np.zeros(shape), source)
    with refused(".nii.gz"):
        write_volume(tmp_path / "a.png", COUNT, source)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_keeps_the_existing_file(tmp_path, monkeypatch):
    path = write_volume(tmp_path / "a.nii.gz", COUNT, volume_of())
    before = path.read_bytes()
    for function, error in (
        ("os.replace", OSError(28, "No space left on device")),
        ("gzip.GzipFile.write", OSError(5, "Input/output error")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(function, lambda *_: (_ for _ in ()).throw(error))  # noqa: B023
            with refused(path, error.strerror):
                write_volume(path, COUNT + 1, volume_of())
        assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_volume(path, COUNT + 1, volume_of())
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def test_a_file_appears_only_when_complete(tmp_path, monkeypatch):
    temporary = []
    replace = os.replace
    monkeypatch.setattr("os.replace", lambda a, b: (temporary.append(Path(a)), read_labels(a), replace(a, b)))
    path = write_volume(tmp_path / "a.nii.gz", COUNT, volume_of())
    assert temporary[0].parent == tmp_path and temporary[0].name.startswith(".") and temporary[0].name.endswith(".nii.gz")
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_paths_that_cannot_be_written_are_refused(tmp_path):
    with refused("none", "cannot be written"):
        write_volume(tmp_path / "none" / "a.nii.gz", COUNT, volume_of())
    (tmp_path / "file").write_text("")
    with refused("cannot be written"):
        write_volume(tmp_path / "file" / "a.nii.gz", COUNT, volume_of())
    (tmp_path / "taken.nii.gz").mkdir()
    with refused("cannot be written"):
        write_volume(tmp_path / "taken.nii.gz", COUNT, volume_of())
    source = read_volume(save(tmp_path / "a.nii.gz", COUNT.astype(np.uint8)))
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "a.nii.gz")
    for name in ("a.nii.gz", "link.nii.gz"):
        with refused("overwrite"):
            write_volume(tmp_path / name, COUNT, source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "file", "link.nii.gz", "taken.nii.gz"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_write_access(tmp_path):
    tmp_path.chmod(0o500)
    with refused("Permission denied"):
        write_volume(tmp_path / "a.nii.gz", COUNT, volume_of())
