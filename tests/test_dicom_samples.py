"""The sample files of pydicom, which include unusual, damaged and foreign ones: each is read, or refused in one sentence."""

from pathlib import Path

import numpy as np
import pytest

from swinunetr_jax.data.formats import read_volume
from swinunetr_jax.errors import InputError

pydicom = pytest.importorskip("pydicom")
SAMPLES = sorted((Path(pydicom.__file__).parent / "data/test_files").glob("*.dcm"))
SAME = ("RLE", "bigendian", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded")  # encodings of one slice


def test_every_sample_is_read_or_refused_in_one_sentence():
    read, refused = {}, {}
    for path in SAMPLES:
        try:
            read[path.stem] = read_volume(path)
        except InputError as error:
            refused[path.stem] = str(error)
    assert {"MR_small", "CT_small", *(f"MR_small_{name}" for name in SAME)} <= set(read)
    for name in SAME:
        assert np.array_equal(read[f"MR_small_{name}"].array, read["MR_small"].array), name
    assert "'1A' as NumberOfFrames" in refused["badVR"] and "colour" in refused["SC_rgb_jpeg"]
    assert "8130 of 8192 bytes" in refused["MR_truncated"] and "hold no image" in refused["rtplan"]
    assert all("\n" not in text and len(text) < 400 for text in refused.values())


def test_a_value_that_is_not_as_dicom_requires_is_one_sentence(tmp_path):
    data = next(path for path in SAMPLES if path.stem == "MR_small").read_bytes()
    (tmp_path / "scan.dcm").write_bytes(data.replace(b"0.3125\\0.3125", b"a.3125\\0.3125"))
    with pytest.raises(InputError, match=r"PixelSpacing|not as DICOM requires"):
        read_volume(tmp_path / "scan.dcm")
