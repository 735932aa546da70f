"""NIfTI files: every damaged file is refused with one sentence, and written files keep the grid exactly."""

import gzip
import itertools
import os
import struct
import tracemalloc
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from refusals import refused

from swinunetr_jax.data.nifti import (
    Volume,
    check_same_grid,
    nifti_file,
    read_geometry,
    read_labels,
    read_volume,
    reorient,
    write_volume,
)
from swinunetr_jax.data.nifti.write import WRITABLE
from swinunetr_jax.errors import InputError

DATA = Path(__file__).parents[2] / "shared" / "data"
LPS = np.array([[-1.0, 0, 0, 10], [0, -1, 0, 20], [0, 0, 2, -30], [0, 0, 0, 1]])
COUNT = np.arange(24).reshape(2, 3, 4)
CODES = ["".join(c) for pick in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*pick)]


def oblique(degrees=25.0):
    a, b = np.deg2rad([degrees, degrees / 2])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return nib.affines.from_matvec(x @ z @ np.diag([0.5, 1.0, 3.0]), [5, -7, 11])


def save(path, array, affine=LPS, kind=nib.Nifti1Image, **fields):
    """Writes with nibabel and then overwrites raw header fields, which nibabel would have corrected."""
    nib.save(kind(array, affine, dtype=array.dtype), path)
    return patch(path, **fields) if fields else path


def patch(path, **fields):
    packed = path.name.endswith(".gz")
    data = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    header = (nib.Nifti1Header if data[0] == 348 % 256 else nib.Nifti2Header)(bytes(data[: data[0] + 256 * data[1]]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[: len(header.binaryblock)] = header.binaryblock
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


@pytest.fixture(autouse=True)
def quiet(capfd):
    """Faults are reported by the exception alone; nothing is printed, not even nibabel's own log."""
    yield
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_reads_what_nibabel_reads(tmp_path, kind, name):
    path = save(tmp_path / name.lower(), COUNT.astype(np.int16), kind=kind).rename(tmp_path / name)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32 and volume.affine.dtype == np.float64 and volume.path == path
    np.testing.assert_array_equal(volume.array, COUNT)
    np.testing.assert_array_equal(volume.affine, LPS)
    assert volume.spacing == (1.0, 1.0, 2.0) and volume.orientation == "LPS"
    shape, affine, orientation = read_geometry(path)
    assert shape == (2, 3, 4) and orientation == "LPS" and (affine == LPS).all()


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
)
def test_real_data_types(tmp_path, dtype):
    path = save(tmp_path / "a.nii.gz", COUNT.astype(dtype))
    np.testing.assert_array_equal(read_volume(path).array, COUNT.astype(np.float32))
    np.testing.assert_array_equal(read_labels(path).array, COUNT)


def test_big_endian(tmp_path):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(COUNT.astype(">i2"), LPS, nib.Nifti1Header(endianness=">")), path)
    assert path.read_bytes()[:4] == b"\0\0\1\\"
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, COUNT)
    written = nib.load(write_volume(tmp_path / "b.nii.gz", COUNT, volume))
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), COUNT)
    np.testing.assert_array_equal(written.affine, LPS)


def test_four_dimensions_and_trailing_singletons(tmp_path):
    channels = np.arange(48).reshape(2, 3, 4, 2).astype(np.float32)
    np.testing.assert_array_equal(read_volume(save(tmp_path / "a.nii.gz", channels)).array, channels)
    for shape in [(2, 3, 4, 1), (2, 3, 4, 1, 1, 1)]:
        path = save(tmp_path / "a.nii.gz", COUNT.astype(np.uint8).reshape(shape))
        assert read_volume(path).array.shape == read_labels(path).array.shape == read_geometry(path)[0] == (2, 3, 4)
    assert read_volume(save(tmp_path / "a.nii.gz", np.ones((2, 3, 1), np.uint8))).array.shape == (2, 3, 1)


def test_scale_factors(tmp_path):
    path = save(tmp_path / "a.nii.gz", COUNT.astype(np.int16), scl_slope=0.5, scl_inter=-1)
    np.testing.assert_array_equal(read_volume(path).array, COUNT * 0.5 - 1)
    for inter in (0, 7, np.nan):  # a slope of 0 means none, whatever the intercept
        np.testing.assert_array_equal(read_volume(patch(path, scl_slope=0, scl_inter=inter)).array, COUNT)
    for slope, inter in [(np.nan, 0), (np.inf, 0), (1, np.nan), (2, -np.inf)]:
        with refused(path, "scl_slope", "finite"):
            read_volume(patch(path, scl_slope=slope, scl_inter=inter))
    # The same rounding as nibabel's own scaling.
    path = save(tmp_path / "b.nii", np.arange(-500, 500, dtype=np.int16).reshape(10, 10, 10), scl_slope=0.0037, scl_inter=1.1)
    np.testing.assert_array_equal(read_volume(path).array, np.asanyarray(nib.load(path).dataobj).astype(np.float32))


def test_scaled_labels_are_integers_again(tmp_path):
    path = save(tmp_path / "a.nii.gz", (COUNT % 3 * 10).astype(np.uint8), scl_slope=0.1)  # 0.1 in float32 is 0.100000001
    labels = read_labels(path).array
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, COUNT % 3)


def test_labels(tmp_path):
    path = tmp_path / "a.nii.gz"
    assert read_labels(save(path, COUNT.astype(np.float32))).array.dtype == np.uint8
    assert read_labels(save(path, COUNT.astype(np.int16) * 100)).array.dtype == np.int32
    with refused(path, "-1"):
        read_labels(save(path, COUNT.astype(np.int16) - 1))
    with refused(path, "0.5", "(0, 0, 1)", "not an integer"):
        read_labels(save(path, COUNT / 2))
    with refused(path, "23000000000"):
        read_labels(save(path, COUNT.astype(np.float64) * 1e9))
    with refused(path, "(2, 3, 4, 2)", "3-D"):
        read_labels(save(path, np.zeros((2, 3, 4, 2), np.uint8)))
    bad = COUNT.astype(np.float32)
    bad[0, 1, 2] = np.nan
    with refused(path, "NaN", "(0, 1, 2)"):
        read_labels(save(path, bad))


def test_voxels_that_are_not_finite(tmp_path):
    bad = COUNT.astype(np.float32)
    bad[0, 1, 2], bad[1, 2, 3] = np.nan, -np.inf
    path = save(tmp_path / "a.nii.gz", bad)
    with refused(path, "2 of 24", "(0, 1, 2)"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, require_finite=False).array, bad)
    bad = COUNT.astype(np.float64)
    bad[1, 0, 0] = 1e300
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with refused(path, "Inf", "(1, 0, 0)"):
            read_volume(save(path, bad))


def test_files_that_are_not_nifti(tmp_path):
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


def test_names_that_contradict_the_compression(tmp_path):
    plain, packed = save(tmp_path / "a.nii", COUNT.astype(np.uint8)), save(tmp_path / "b.nii.gz", COUNT.astype(np.uint8))
    with refused("not gzip"):
        read_volume(plain.rename(tmp_path / "c.nii.gz"))
    with refused("gzip"):
        read_volume(packed.rename(tmp_path / "d.nii"))


def test_truncated_and_damaged_files(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20), np.uint8)
    for name in ("a.nii", "a.nii.gz"):
        path = save(tmp_path / name, noise)
        whole = path.read_bytes()
        for length in (20, 200, 1000, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with refused(path):
                read_volume(path)
    # gzip's own checksum is verified, so a flipped bit in the voxels does not pass.
    for position in (len(whole) // 2, len(whole) - 6):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with refused(path, "damaged"):
            read_volume(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_claims_are_refused_before_allocation(tmp_path, name, kind):
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
    # A small claim is followed by much more data, which is read for the checksum and discarded.
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
    sound = gzip.compress(path.read_bytes() + bytes(excess), mtime=0)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(sound)
    np.testing.assert_array_equal(read_volume(path).array, noise)
    for position in (-1, -4, -5, -8):  # length and checksum
        damaged = bytearray(sound)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with refused(path, "damaged"):
            read_volume(path)
        with refused(path, "damaged"):
            read_labels(path)
    path.write_bytes(sound[:-3])
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
    whole = path.read_bytes()
    for name, (dtype, _) in kind.header_class.template_dtype.fields.items():
        for value, place in itertools.product(EXTREMES[dtype.base.kind], range(dtype.shape[0]) if dtype.shape else [()]):
            if dtype.base.kind in "iu" and not np.iinfo(dtype.base).min <= value <= np.iinfo(dtype.base).max:
                continue
            header = kind.header_class(whole[: kind.header_class.sizeof_hdr], check=False)
            header[name][place] = value
            path.write_bytes(header.binaryblock + whole[len(header.binaryblock) :])
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
                theirs = nib.load(path, mmap=False)
                stored = np.asanyarray(theirs.dataobj).reshape(volume.array.shape)
            np.testing.assert_array_equal(volume.array, stored.astype(np.float32))
            np.testing.assert_array_equal(volume.affine, theirs.affine)
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

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(nifti_file.np, "empty", full)
    with refused(path, "(2, 3, 4)", "do not fit into memory"):
        read_volume(path)


def test_types_without_a_number_per_voxel(tmp_path):
    colour = np.zeros((2, 3, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    for array in (COUNT.astype(np.complex64), colour):
        with refused("a.nii.gz", "data type"):
            read_volume(save(tmp_path / "a.nii.gz", array))
    for code in (0, 1, 1536, 777):
        with refused("a.nii", "data type", code):
            read_volume(save(tmp_path / "a.nii", COUNT.astype(np.int16), datatype=code))


def test_singular_affines(tmp_path):
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


def test_an_affine_without_codes_is_that_of_nibabel(tmp_path):
    path = save(tmp_path / "a.nii.gz", COUNT.astype(np.uint8), qform_code=0, sform_code=0, pixdim=[0, 2, 3, 4, 0, 0, 0, 0])
    np.testing.assert_array_equal(read_volume(path).affine, nib.load(path).affine)


def volume_of(shape=(2, 3, 4), affine=LPS, name="a.nii.gz"):
    return Volume(np.zeros(shape, np.float32), np.asarray(affine, np.float64), nib.Nifti1Header(), Path(name))


def test_same_grid():
    one = volume_of((100, 100, 50))  # 100 mm: corners may move by 0.1 mm
    check_same_grid([])
    check_same_grid([one])
    near, far = LPS.copy(), LPS.copy()
    near[0, 3] += 0.09
    far[0, 3] += 0.11
    check_same_grid([one, volume_of((100, 100, 50, 4)), volume_of((100, 100, 50), near)])
    with refused("a.nii.gz", "b.nii.gz", "0.11 mm"):
        check_same_grid([one, one, volume_of((100, 100, 50), far, "b.nii.gz")])
    with refused("b.nii.gz", "(100, 100, 51)"):
        check_same_grid([one, volume_of((100, 100, 51), name="b.nii.gz")])
    turned = volume_of((100, 100, 50), np.diag([1, 1, 2, 1]), "b.nii.gz")
    with refused("LPS", "RAS", "mm apart"):
        check_same_grid([one, turned])


def test_there_are_48_orientations():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("codes", CODES)
def test_orientations_are_inverted_exactly(codes):
    """From this orientation to RAS and from LPS to it, voxels keep their positions, and the inverse is exact, also with channels."""
    affine = np.eye(4)
    for axis, code in enumerate(codes):
        row = next(i for i, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[:3, axis] = 0
        affine[row, axis] = (1.0, 2.0, 3.0)[axis] * (1 if code in "RAS" else -1)
    affine[:3, 3] = 5, -6, 7
    for start, there in ((affine, "RAS"), (LPS, codes)):
        turned, turned_affine, back = reorient(COUNT, start, there)
        assert "".join(nib.aff2axcodes(turned_affine)) == there
        np.testing.assert_array_equal(back.apply(turned), COUNT)
        for index in np.ndindex(turned.shape):
            old = np.argwhere(turned[index] == COUNT)[0]
            np.testing.assert_array_equal(turned_affine @ [*index, 1], start @ [*old, 1])
        channels = np.stack([COUNT, -COUNT], -1)
        turned, _, _ = reorient(channels, start, there)
        np.testing.assert_array_equal(back.apply(turned), channels)


def test_reorient_literal():
    array = np.array([[[1, 2]], [[3, 4]]])  # x 2, y 1, z 2
    turned, affine, back = reorient(array, np.diag([-1.0, -1, 1, 1]), "SRA")
    np.testing.assert_array_equal(turned, [[[3], [1]], [[4], [2]]])
    np.testing.assert_array_equal(affine, [[0, 1, 0, -1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(back.apply(turned), array)


@pytest.mark.parametrize("degrees", [5, 25, 44, 46, 80, 130])
def test_oblique_grids_are_oriented_by_their_closest_axes(degrees):
    affine = oblique(degrees)
    turned, turned_affine, back = reorient(COUNT, affine)
    assert "".join(nib.aff2axcodes(turned_affine)) == "RAS"
    for index in np.ndindex(turned.shape):
        old = np.argwhere(turned[index] == COUNT)[0]
        np.testing.assert_allclose(turned_affine @ [*index, 1], affine @ [*old, 1], atol=1e-12)
    np.testing.assert_array_equal(back.apply(turned), COUNT)


def test_reorient_refuses():
    for codes in ("RA", "RAR", "RAX", "ras", "RASS", ""):
        with refused("codes"):
            reorient(COUNT, LPS, codes)
    _, _, back = reorient(COUNT, LPS, "SRA")
    with refused("(2, 3, 4)", "(4, 2, 3)"):
        back.apply(COUNT)


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
    like = volume_of()
    for dtype in WRITABLE:
        read = nib.load(write_volume(tmp_path / "a.nii", COUNT, like, dtype))
        assert read.get_data_dtype() == dtype
        np.testing.assert_array_equal(np.asanyarray(read.dataobj), COUNT)
    probabilities = np.random.default_rng(0).random((2, 3, 4, 3), np.float32)
    np.testing.assert_array_equal(
        read_volume(write_volume(tmp_path / "p.nii.gz", probabilities, like, np.float32)).array, probabilities
    )
    np.testing.assert_array_equal(read_labels(write_volume(tmp_path / "b.nii.gz", COUNT > 5, like)).array, COUNT > 5)
    write_volume(tmp_path / "c.nii.gz", COUNT, volume_of((2, 3, 4, 4)))  # a label map for an image of four channels
    write_volume(tmp_path / "d.nii.gz", np.asfortranarray(COUNT)[..., ::-1], like)
    np.testing.assert_array_equal(read_labels(tmp_path / "d.nii.gz").array, COUNT[..., ::-1])


def test_equal_results_are_equal_bytes(tmp_path):
    first = write_volume(tmp_path / "a.nii.gz", COUNT, volume_of()).read_bytes()
    assert write_volume(tmp_path / "b.nii.gz", COUNT, volume_of(name="other.nii.gz")).read_bytes() == first
    assert first[4:8] == bytes(4)  # gzip's time stamp


def test_values_that_do_not_fit(tmp_path):
    like, path = volume_of(), tmp_path / "a.nii.gz"
    for value in (-1, 256, 0.5, np.nan, np.inf):
        array = COUNT.astype(np.float64)
        array[1, 0, 2] = value
        with refused(path, value, "(1, 0, 2)", "uint8"):
            write_volume(path, array, like)
    for value in (np.nan, 1e300):
        array[1, 0, 2] = value
        with refused(path, "float32"):
            write_volume(path, array, like, np.float32)
    for dtype in (np.int64, np.float64, np.float16, bool):
        with refused(path, "data type"):
            write_volume(path, COUNT, like, dtype)
    for shape in ((2, 3, 5), (4, 3, 2), (2, 3), (2, 3, 4, 1, 1)):
        with refused(path, shape):
            write_volume(path, np.zeros(shape), like)
    with refused(".nii.gz"):
        write_volume(tmp_path / "a.png", COUNT, like)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_keeps_the_existing_file(tmp_path, monkeypatch):
    path = write_volume(tmp_path / "a.nii.gz", COUNT, volume_of())
    before = path.read_bytes()
    for where, error in (
        ("os.replace", OSError(28, "No space left on device")),
        ("gzip.GzipFile.write", OSError(5, "Input/output error")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(where, lambda *_: (_ for _ in ()).throw(error))  # noqa: B023
            with refused(path, error.strerror):
                write_volume(path, COUNT + 1, volume_of())
        assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_volume(path, COUNT + 1, volume_of())
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == before


def test_a_file_appears_only_when_complete(tmp_path, monkeypatch):
    seen = []
    replace = os.replace
    monkeypatch.setattr("os.replace", lambda a, b: (seen.append(Path(a)), read_labels(a), replace(a, b)))
    path = write_volume(tmp_path / "a.nii.gz", COUNT, volume_of())
    assert seen[0].parent == tmp_path and seen[0].name.startswith(".") and seen[0].name.endswith(".nii.gz")
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_paths_that_cannot_be_written(tmp_path):
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


@pytest.fixture
def real():
    if not DATA.is_dir():
        pytest.skip("no real data here")
    return DATA


def test_real_hippocampus(real):
    for image in sorted((real / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))[::20]:
        volume, labels = read_volume(image), read_labels(image.parents[1] / "labelsTr" / image.name)
        np.testing.assert_array_equal(volume.array, np.asanyarray(nib.load(image).dataobj))
        assert labels.array.max() == 2
        check_same_grid([volume, labels])


def test_a_real_brain_is_reoriented_to_ras_and_back(real, tmp_path):
    folder = real / "open_ms" / "patient19"
    flair, lesion = read_volume(folder / "FLAIR.nii.gz"), read_labels(folder / "LESION.nii.gz")
    assert flair.orientation == "LAS" and flair.spacing == (1.0, 1.0, 1.0) and flair.array.shape == (182, 218, 182)
    check_same_grid([flair, lesion])
    turned, _, back = reorient(lesion.array, lesion.affine)
    path = write_volume(tmp_path / "out.nii.gz", back.apply(turned), flair)
    np.testing.assert_array_equal(
        np.asanyarray(nib.load(path).dataobj), np.asanyarray(nib.load(folder / "LESION.nii.gz").dataobj)
    )
    np.testing.assert_array_equal(nib.load(path).affine, nib.load(folder / "FLAIR.nii.gz").affine)
