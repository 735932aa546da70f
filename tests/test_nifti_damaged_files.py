"""Damaged, truncated and hostile NIfTI files are refused with one sentence, before memory is allocated."""

import gzip
import itertools
import os
import struct
import tracemalloc
import warnings

import nibabel as nib
import numpy as np
import pytest
from helpers.nifti_files import COUNT, LPS, patch, save, volume_of
from helpers.refusals import refused

from swinunetr_jax.data.nifti import nifti_file, read_geometry, read_labels, read_volume, reorient, write_volume
from swinunetr_jax.errors import InputError

pytestmark = pytest.mark.usefixtures("nothing_printed")


def test_files_that_are_not_nifti_are_refused(tmp_path):
    for name, content, words in [
        ("empty.nii.gz", b"", "empty"),
        ("page.nii.gz", b"\n <!DOCTYPE html><html>403</html>", "web page"),
        ("pointer.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("text.nii", b"hello " * 200, "not NIfTI"),
        ("short.nii", b"hello", "not NIfTI"),
        ("png.nii", b"\x89PNG\r\n\x1a\n" + bytes(1000), "not NIfTI"),
        ("zero.nii.gz", gzip.compress(bytes(1000), mtime=0), "not NIfTI"),
        ("empty_gz.nii.gz", gzip.compress(b"", mtime=0), "not NIfTI"),
        ("analyze.nii", struct.pack("<i", 348) + bytes(1000), "not NIfTI"),
        ("head.nii", struct.pack("<i", 348) + bytes(96), "truncated"),
        ("junk.nii.gz", b"\x1f\x8b\x08" + b"junk" * 20, ""),
        ("scan.mha", b"ObjectType = Image", ".nii.gz"),
        ("scan.img", bytes(400), ".hdr/.img"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        for read in (read_volume, read_labels, read_geometry):
            with refused(path, words):
                read(path)
    with refused("none.nii.gz", "No such file"):
        read_volume(tmp_path / "none.nii.gz")
    (tmp_path / "folder.nii.gz").mkdir()
    with refused("not a file"):
        read_volume(tmp_path / "folder.nii.gz")
    os.mkfifo(tmp_path / "pipe.nii")
    with refused("not a file"):
        read_volume(tmp_path / "pipe.nii")
    pair = nib.Nifti1Pair(COUNT.astype(np.uint8), LPS)
    nib.save(pair, tmp_path / "pair.hdr")
    with refused(".hdr/.img pair"):
        read_volume(tmp_path / "pair.hdr")
    os.rename(tmp_path / "pair.hdr", tmp_path / "pair.nii")
    with refused(".hdr/.img pair"):
        read_volume(tmp_path / "pair.nii")


def test_names_that_contradict_the_compression_are_refused(tmp_path):
    plain, packed = save(tmp_path / "a.nii", COUNT.astype(np.uint8)), save(tmp_path / "b.nii.gz", COUNT.astype(np.uint8))
    with refused("not gzip"):
        read_volume(plain.rename(tmp_path / "c.nii.gz"))
    with refused("gzip"):
        read_volume(packed.rename(tmp_path / "d.nii"))


def test_truncated_and_damaged_files_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20), np.uint8)
    for name in ("a.nii", "a.nii.gz"):
        path = save(tmp_path / name, noise)
        content = path.read_bytes()
        for length in (20, 200, 1000, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:length])
            with refused(path):
                read_volume(path)
    # The checksum of gzip is verified, so that a flipped bit in the voxels is detected.
    for position in (len(content) // 2, len(content) - 6):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with refused(path, "damaged"):
            read_volume(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_impossible_headers_are_refused_before_memory_is_allocated(tmp_path, name, kind):
    path = save(tmp_path / name, np.zeros((2, 3, 4), np.float32), kind=kind)
    bomb = [3, 30000, 30000, 30000, 1, 1, 1, 1]
    for dims in (bomb, [3, 0, 3, 4, 1, 1, 1, 1], [3, -2, 3, 4, 1, 1, 1, 1], [0] * 8, [9] * 8, [-3, 2, 3, 4, 1, 1, 1, 1]):
        patch(path, dim=dims)
        tracemalloc.start()
        with refused(path):
            read_volume(path)
        with refused(path):
            read_labels(path)
        with refused(path):
            read_geometry(path)
        assert tracemalloc.get_traced_memory()[1] < 2e6
        tracemalloc.stop()
    patch(path, dim=[3, 2, 3, 4, 1, 1, 1, 1])
    for offset in (0, 16, -400, 10**9) + ((np.nan, np.inf, -np.inf) if kind is nib.Nifti1Image else ()):
        with refused(path):
            read_volume(patch(path, vox_offset=offset))
    patch(path, vox_offset=544 if kind is nib.Nifti2Image else 352)
    for dims in ([1, 24, 1, 1, 1, 1, 1, 1], [2, 6, 4, 1, 1, 1, 1, 1], [5, 2, 1, 2, 2, 3, 1, 1], [5, 2, 3, 2, 1, 2, 1, 1]):
        with refused(path, "dimensions"):
            read_volume(patch(path, dim=dims))


def test_gzip_bomb_stops_at_the_limit(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.zeros((100, 100, 100), np.uint8))
    assert path.stat().st_size < 5000
    with refused(path, "4.0 MB", "max_bytes"):
        read_volume(path, max_bytes=3_999_999)
    assert read_volume(path, max_bytes=4_000_000).array.shape == (100, 100, 100)
    assert read_geometry(path)[0] == (100, 100, 100)
    # The header states a small image. Much more data follows, which is read for the checksum and discarded.
    path.write_bytes(gzip.compress(gzip.decompress(save(path, COUNT.astype(np.uint8)).read_bytes()) + bytes(50_000_000), 1))
    tracemalloc.start()
    np.testing.assert_array_equal(read_volume(path).array, COUNT)
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


@pytest.mark.fault("2.5")
@pytest.mark.parametrize("excess", [0, 1, 2, 500, 3 << 20])
def test_damage_of_a_gzip_file_is_detected_with_any_data_after_the_last_voxel(tmp_path, excess):
    noise = np.random.default_rng(0).integers(0, 255, (9, 9, 9), np.uint8)
    path = save(tmp_path / "a.nii", noise)
    intact = gzip.compress(path.read_bytes() + bytes(excess), mtime=0)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(intact)
    np.testing.assert_array_equal(read_volume(path).array, noise)
    for position in (-1, -4, -5, -8):  # length and checksum
        damaged = bytearray(intact)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with refused(path, "damaged"):
            read_volume(path)
        with refused(path, "damaged"):
            read_labels(path)
    path.write_bytes(intact[:-3])
    with refused(path, "truncated"):
        read_volume(path)


@pytest.mark.fault("2.5")
def test_a_gzip_file_of_several_members_is_verified_to_the_last(tmp_path, monkeypatch):
    raw = save(tmp_path / "a.nii", COUNT.astype(np.uint8)).read_bytes()
    parts = [raw[:100], raw[100:370], raw[370:], bytes(50)]
    path = tmp_path / "a.nii.gz"
    members = [gzip.compress(part, mtime=0) for part in parts]
    path.write_bytes(b"".join(members))
    np.testing.assert_array_equal(read_volume(path).array, COUNT)
    for index in range(4):
        damaged = [bytearray(member) for member in members]
        damaged[index][-6] ^= 1
        path.write_bytes(b"".join(damaged))
        with refused(path, "damaged"):
            read_volume(path)
    monkeypatch.setattr(nifti_file, "MAX_EXCESS", 49)
    path.write_bytes(b"".join(members))
    with refused(path, "more than 49 bytes follow the last"):
        read_volume(path)


EXTREMES = {
    "f": (0.0, -1.0, 1e-30, -1e30, np.nan, np.inf, -np.inf),
    "i": (0, -1, 3, -32768, 2**31 - 1, 2**63 - 1, -(2**63)),
    "S": (b"", b"ni1", b"\xff\xfe\xff"),
    "u": (0, 255),
}


@pytest.mark.fault("3.4")
@pytest.mark.parametrize("kind, codes", [(nib.Nifti1Image, (1, 0)), (nib.Nifti2Image, (0, 1))])
def test_any_value_of_a_header_field_is_read_as_by_nibabel_or_refused(tmp_path, kind, codes):
    path, accepted = tmp_path / "a.nii", 0
    save(path, COUNT.astype(np.int16), kind=kind, qform_code=codes[0], sform_code=codes[1], scl_slope=1, scl_inter=0)
    content = path.read_bytes()
    for name, (dtype, _) in kind.header_class.template_dtype.fields.items():
        for value, index in itertools.product(EXTREMES[dtype.base.kind], range(dtype.shape[0]) if dtype.shape else [()]):
            if dtype.base.kind in "iu" and not np.iinfo(dtype.base).min <= value <= np.iinfo(dtype.base).max:
                continue
            header = kind.header_class(content[: kind.header_class.sizeof_hdr], check=False)
            header[name][index] = value
            path.write_bytes(header.binaryblock + content[len(header.binaryblock) :])
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    volume = read_volume(path)
                except InputError as error:
                    assert str(path) in str(error) and "\n" not in str(error)
                    continue
                assert len(volume.orientation) == 3 and min(volume.spacing) > 0
            accepted += 1
            with nib.imageglobals.LoggingOutputSuppressor():
                by_nibabel = nib.load(path, mmap=False)
                stored = np.asanyarray(by_nibabel.dataobj).reshape(volume.array.shape)
            np.testing.assert_array_equal(volume.array, stored.astype(np.float32))
            np.testing.assert_array_equal(volume.affine, by_nibabel.affine)
    assert accepted > 100


@pytest.mark.fault("3.5")
@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "\ud800", "loop", "file/a"], ids=ascii)
def test_impossible_file_names_are_refused_with_one_sentence(tmp_path, name):
    (tmp_path / "loop.nii.gz").symlink_to("loop.nii.gz")
    (tmp_path / "file").write_text("")
    path = tmp_path / f"{name}.nii.gz"
    for read in (read_volume, read_labels, read_geometry):
        with pytest.raises(InputError, match="cannot be read"):
            read(path)
    if name != "loop":
        with pytest.raises(InputError, match="cannot be written"):
            write_volume(path, COUNT, volume_of())


def test_an_image_that_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", COUNT.astype(np.uint8))

    def raise_memory_error(*_, **__):
        raise MemoryError

    monkeypatch.setattr(nifti_file.np, "empty", raise_memory_error)
    with refused(path, "(2, 3, 4)", "do not fit into memory"):
        read_volume(path)


def test_types_without_a_number_per_voxel_are_refused(tmp_path):
    colour = np.zeros((2, 3, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    for array in (COUNT.astype(np.complex64), colour):
        with refused("a.nii.gz", "data type"):
            read_volume(save(tmp_path / "a.nii.gz", array))
    for code in (0, 1, 1536, 777):
        with refused("a.nii", "data type", code):
            read_volume(save(tmp_path / "a.nii", COUNT.astype(np.int16), datatype=code))


def test_singular_affines_are_refused(tmp_path):
    path = save(tmp_path / "a.nii.gz", COUNT.astype(np.uint8))
    for row in ([0, 0, 0, 0], [np.nan, 0, 0, 0], [0, -1, 0, 0], [1, 0, 0, np.inf]):
        with refused(path, "affine"):
            read_volume(patch(path, srow_x=row))
        with refused(path, "affine"):
            read_geometry(path)
    with refused(path, "qform"):
        read_volume(patch(path, sform_code=0, qform_code=1, quatern_b=3))
    with refused("singular"):
        reorient(COUNT, np.zeros((4, 4)))
    with refused("the last row of the affine is [0, 0, 0, 2], expected [0, 0, 0, 1]"):
        reorient(COUNT, np.diag([1, 1, 1, 2]))
