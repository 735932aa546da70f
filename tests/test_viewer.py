"""The contents of a viewer page, without a browser."""

import base64
import gzip
import html
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from swinunetr_jax import InputError, Task
from swinunetr_jax.cli import main
from swinunetr_jax.data.nifti import Volume
from swinunetr_jax.inference.segmentation import Segmentation
from swinunetr_jax.output import Output
from swinunetr_jax.viewer import LabelMap, page_text, sources, viewer_contents
from swinunetr_jax.viewer import contents as contents_module
from swinunetr_jax.viewer.encode import MAX_HALVINGS, nifti_base64, quantized
from swinunetr_jax.viz.labels import colour, label_colours, label_names

AFFINE = np.diag([-1.0, 2.0, 3.0, 1.0])


def image(text):
    raw = gzip.decompress(base64.b64decode(text))
    return nib.Nifti1Image.from_bytes(raw)


def two_maps():
    first = np.zeros((4, 5, 6), np.uint8)
    first[1, 1:4, 2] = 1
    first[2, 2, 2] = 1035 % 256
    second = np.zeros((4, 5, 6), np.int32)
    second[1, 2:4, 2] = 1
    second[2, 2, 2] = 1035
    second[3, 4, 5] = 1
    return first, second


def test_the_page_holds_the_scan_and_the_label_maps():
    first, second = two_maps()
    scan = np.arange(120, dtype=np.float32).reshape(4, 5, 6) * 300 - 9000
    contents = viewer_contents(
        {"FLAIR": scan}, AFFINE, [LabelMap("prediction", first), LabelMap("reference", second)], title="a case"
    )
    stored = image(contents.arrays["channel-0"])
    np.testing.assert_array_equal(stored.get_fdata(), scan)
    np.testing.assert_array_equal(stored.affine, AFFINE)
    # labels are numbered in the order of their values 1, 11 and 1035
    np.testing.assert_array_equal(image(contents.arrays["map-0"]).get_fdata()[1:3, 1:4, 2], [[1, 1, 1], [0, 2, 0]])
    np.testing.assert_array_equal(image(contents.arrays["map-1"]).get_fdata()[1:3, 1:4, 2], [[0, 1, 1], [0, 3, 0]])
    difference = image(contents.arrays["map-2"]).get_fdata()
    np.testing.assert_array_equal(difference[1:3, 1:4, 2], [[1, 0, 0], [0, 3, 0]])
    assert difference[3, 4, 5] == 2
    facts = contents.description
    assert facts["channels"] == [
        {"name": "FLAIR", "range": [-9000, 26700], "shown": facts["channels"][0]["shown"], "step": 0, "clipped": False}
    ]
    assert facts["grid"] == "4 × 5 × 6 voxels of 1 × 2 × 3 mm" and facts["start"] == [1, 2, 2]
    assert [(label["value"], label["name"], label["ml"]) for label in facts["maps"][0]["labels"]] == [
        (1, "label 1", 0.018),
        (11, "label 11", 0.006),
    ]
    names = ["only in prediction", "only in reference", "in both, with another label"]
    assert [(label["name"], label["ml"]) for label in facts["maps"][2]["labels"]] == [(name, 0.006) for name in names]


def test_intensities_keep_their_range():
    rng = np.random.default_rng(0)
    exact = rng.integers(0, 200, (6, 6, 6)).astype(np.float32)
    assert quantized(exact).is_exact and quantized(exact).integers.dtype == np.uint8
    values = np.concatenate([np.zeros(3000), rng.normal(0.001, 0.0003, 5000)]).astype(np.float32).reshape(20, 20, 20)
    for halvings, levels in ((0, 4000), (2, 1000), (MAX_HALVINGS, 240)):
        stored = quantized(values, halvings)
        back, coarse = stored.integers * stored.slope + stored.offset, halvings == MAX_HALVINGS
        assert (abs(back - values) <= stored.slope * 0.51).mean() > (0.998 if coarse else 0.9999) and stored.is_clipped == coarse
        assert np.ptp(values) / stored.slope > levels and (back[values == 0] == 0).all()
    far = (1e6 + rng.normal(0, 1, (9, 9, 9))).astype(np.float32)
    stored = quantized(far)
    assert abs(stored.integers * stored.slope + stored.offset - far).max() <= 0.1
    narrow = rng.integers(0, 301, (9, 9, 9)).astype(np.float32)
    assert [quantized(narrow, halvings).slope for halvings in (0, 1, MAX_HALVINGS)] == [1, 300 / 255, 300 / 255]
    few = np.where(rng.random((20, 20, 20)) < 1e-4, 500, rng.integers(0, 90, (20, 20, 20))).astype(np.float32)
    few[0, 0, 0] = 500
    assert all(
        quantized(few, halvings).is_exact for halvings in range(MAX_HALVINGS + 1)
    )  # 255 levels would need smaller steps than 1
    assert quantized(narrow + 40000).slope == 300 / 4095 and quantized(narrow // 2 + 40000).is_exact
    for value in (1e9, 7.5):
        constant = quantized(np.full((3, 3, 3), value, np.float32))
        assert (constant.integers * constant.slope + constant.offset == value).all() and constant.is_exact


def test_a_large_page_has_the_smallest_steps_with_which_it_is_small(monkeypatch):
    values = np.random.default_rng(0).normal(0, 400, (40, 40, 20)).round().astype(np.float32)
    sizes = []
    for halvings in range(MAX_HALVINGS + 1):
        stored = quantized(values, halvings)
        sizes.append(len(nifti_base64(stored.integers, AFFINE, stored.slope, stored.offset)))
        assert stored.slope == 2**halvings or halvings == MAX_HALVINGS
    assert sizes == sorted(sizes, reverse=True)
    for halvings, size in enumerate([*sizes, 1]):
        monkeypatch.setattr(contents_module, "FINE_BYTES", size)
        page = viewer_contents({"CT": values}, AFFINE, title="case")
        (facts,), stored = page.description["channels"], quantized(values, min(halvings, MAX_HALVINGS))
        assert facts["step"] == (0 if halvings == 0 else stored.slope) and facts["range"] == [values.min(), values.max()]


def test_names_from_data_are_literal():
    nasty = "</script><script>alert(1)</script>\u202e"
    labels = np.ones((3, 3, 3), np.uint8)
    task = Task.classes(2, names=("background", nasty))
    contents = viewer_contents({nasty: labels * 1.0}, AFFINE, [LabelMap(nasty, labels)], title=nasty, task=task)
    text = page_text(contents)
    assert nasty not in text and "<script>alert" not in text and "\u202e" not in text
    assert "<title>&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\u202e</title>" in text
    stated = json.loads(re.search(r'id="description">(.*?)</script>', text).group(1))
    assert stated["maps"][0]["labels"][0]["name"] == nasty.replace("\u202e", "\\u202e")
    assert not re.search(r'(src|href)="(?!data:)', text) and "default-src 'none'" in text


def test_names_in_a_segmentation_are_different_and_mean_nothing_else():
    names = {1: "a", 2: "a", 3: "a (2)", 4: " ", 5: "Background", 6: "ignore", 7: "liver"}
    numbered = sources._numbered(names)
    assert sorted(numbered.values()) == list(names) and numbered["liver"] == 7
    assert list(numbered)[:4] == ["a (1)", "a (2)", "a (2) (3)", "segment (4)"]
    assert [output.name for output in Task.from_labels(numbered).outputs][-3:] == ["Background (5)", "ignore (6)", "liver"]


def test_labels_are_named_for_what_they_are():
    assert label_names(Task.brats()) == {1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}
    assert label_names(Task.brats(et_label=3)) == {1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}
    outputs = (Output(name="kidney", value=1, members=(1, 2, 3)), Output(name="mass", value=2, members=(2, 3)))
    outputs += (Output(name="tumour", value=3, members=(3,)),)
    task = Task(kind="regions", outputs=outputs, paint=(0, 1, 2), ignore=9)
    assert label_names(task) == {1: "kidney without mass", 2: "mass without tumour", 3: "tumour", 9: "ignored"}
    assert label_names(Task.classes(3)) == {1: "class 1", 2: "class 2"}
    assert label_colours([4, 1]) == {1: "#56B4E9", 4: "#E69F00"}
    assert len({colour(index) for index in range(60)}) == 60


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = two_maps()
    nib.save(nib.Nifti1Image(np.arange(120, dtype=np.float32).reshape(4, 5, 6) / 7, AFFINE), "scan.nii.gz")
    nib.save(nib.Nifti1Image(first, AFFINE), "a.nii.gz")
    nib.save(nib.Nifti1Image(second, AFFINE), "b.nii.gz")
    nib.save(nib.Nifti1Image(first[:3], AFFINE), "small.nii.gz")
    return tmp_path


def view(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["view", *arguments])
    output = capsys.readouterr()
    return stop.value.code, output.out + output.err


def test_the_command_writes_a_page(files, capsys):
    (files / "predict.json").write_text(json.dumps({"settings": {"task": Task.classes(12).to_dict()}}))
    code, output = view(capsys, "scan.nii.gz", "a.nii.gz", "b.nii.gz")
    assert code == 0 and output.startswith("1 channel, label maps a, b → scan.html (")
    text = (files / "scan.html").read_text("utf-8")
    assert "class 11" in text and '"name": "difference"' in text and str(files) not in text
    assert view(capsys, "scan.nii.gz")[1].startswith("error: scan.html exists already: ")
    assert view(capsys, "scan.nii.gz", "-o", "x.html", "--channels", "scan.nii.gz")[0] == 0
    assert '"channel 2"' in (files / "x.html").read_text("utf-8")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["scan.nii.gz", "small.nii.gz"], "are not on the same grid: their shapes are (4, 5, 6) and (3, 5, 6)"),
        (["scan.nii.gz", "scan.nii.gz"], "is not an integer, expected a label map"),
        (["absent.nii.gz"], "absent.nii.gz: cannot be read (No such file or directory)"),
        ([".", "a.nii.gz"], "holds 4 cases, expected one"),
        (["scan.nii.gz", "a.nii.gz", "--names", "x", "y"], "--names gives x, y for 1 label maps"),
        (["scan.nii.gz", "a.nii.gz", "--task", "other.json"], "--task other.json is not an existing file"),
        (["scan.nii.gz", "-o", "page.txt"], "page.txt: the ending is not supported, expected .html."),
        (["scan.nii.gz", "-o", "no/page.html"], "no/page.html: cannot be written (No such file or directory)"),
    ],
)
def test_wrong_input_is_one_sentence(files, capsys, arguments, message):
    code, output = view(capsys, *arguments)
    assert code == 2 and message in output and output.count("\n") == 1, output
    assert not list(files.glob("*.html"))


def test_a_result_shows_its_picture():
    first, _ = two_maps()
    scan = Volume(np.random.default_rng(0).random((4, 5, 6)), AFFINE, nib.Nifti1Header(), Path("scan.nii.gz"))
    figure = Segmentation(first, None, scan, Task.classes(12), 1, ()).show("a case")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["class 1 (1): 0.0 ml", "class 11 (11): 0.0 ml"]
    assert [text.get_text() for axes in figure.axes[:3] for text in axes.texts] == ["R", "L", "R", "L", "P", "A"]


def test_a_scan_is_not_a_label_map():
    many = np.arange(300).reshape(5, 6, 10)
    with pytest.raises(InputError, match="other has 300 different values, expected a label map with at most 255 labels"):
        viewer_contents({"scan": many * 1.0}, AFFINE, [LabelMap("other", many)], title="case")
    with pytest.raises(InputError, match="3000 voxels along an axis, but browsers show at most 2048"):
        viewer_contents({"scan": np.zeros((3000, 1, 1))}, AFFINE, title="case")


def test_a_segmentation_has_a_page_for_notebooks_and_files(tmp_path):
    first, _ = two_maps()
    scan = Volume(np.ones(first.shape, np.float32), AFFINE, nib.Nifti1Image(first, AFFINE).header, Path("scan"))
    channels = {"T1": np.random.default_rng(0).normal(size=first.shape).astype(np.float32)}
    result = Segmentation(first, None, scan, Task.classes(12), 1, (), channels=channels)
    frame = result.show_viewer("a <case>")._repr_html_()
    path = result.save_viewer(tmp_path / "page.html", "a <case>")
    assert frame.startswith('<iframe srcdoc="&lt;!doctype html') and html.unescape(frame).count("a &lt;case&gt;") == 2
    assert "a &lt;case&gt;" in path.read_text()
    with pytest.raises(InputError, match="exists already"):
        result.save_viewer(path)
