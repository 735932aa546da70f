"""`swinunetr predict`, `convert` and `info` as a user runs them, on small scans and, where available, on a real one."""

import json
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest
from flax import nnx
from helpers.prediction import BRATS, read_image, run, write_case
from helpers.small_network import SmallNetwork, forget, replace_swin_unetr

from swinunetr_jax import SwinUNETR, SwinUNETRConfig, Task, load_checkpoint, open_checkpoint, save_checkpoint
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.inference.predict import Segmenter

ROI = ("64", "32", "32")


CONFIG = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=12, depths=(1, 1, 1, 1))
TASK = Task.brats(roi=(64, 32, 32))


@pytest.fixture(autouse=True)
def small_network(request, monkeypatch):
    """Replaces Swin UNETR by a small network in the tests of `model`."""
    if "model" in request.fixturenames:
        replace_swin_unetr(monkeypatch)
    yield
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Returns the checkpoint of a small network with random weights whose predictions contain every label."""
    network = SmallNetwork(CONFIG, rngs=nnx.Rngs(0))
    network.out.bias[...] = np.array([0.0, 0.05, -0.05], np.float32)
    with pytest.MonkeyPatch.context() as patch:
        replace_swin_unetr(patch)
        save_checkpoint(path := tmp_path_factory.mktemp("small") / "net", network, task=TASK)
    forget()
    return path


@pytest.fixture(scope="module")
def swin_unetr(tmp_path_factory):
    """Returns the checkpoint of a Swin UNETR with random weights whose predictions contain every label."""
    network = SwinUNETR(CONFIG, rngs=nnx.Rngs(0))
    network.out.bias[...] = np.array([0.0, 0.05, -0.05], np.float32)
    save_checkpoint(path := tmp_path_factory.mktemp("swin_unetr") / "net", network, task=TASK)
    return path


def write_reoriented(source, target, codes, tilt=0.0):
    """Copies a case with another orientation, and with its grid tilted by `tilt` radians about the x axis."""
    target.mkdir(parents=True)
    rotation = np.eye(4)
    rotation[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    for path in source.iterdir():
        image = nib.load(path)
        ornt = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
        image = image.as_reoriented(ornt)
        nib.save(
            nib.Nifti1Image(np.asarray(image.dataobj), rotation @ image.affine),
            target / path.name.replace(source.name, target.name),
        )
    return target


def test_a_case_folder_is_segmented(swin_unetr, tmp_path, capsys):
    case = write_case(tmp_path)
    assert run("predict", "-i", case, "-o", tmp_path / "out", "-m", swin_unetr, "--preview", "--probabilities") == 0
    labels, image = read_image(tmp_path / "out/BraTS2021_00001.nii.gz")
    source = nib.load(case / "BraTS2021_00001_flair.nii.gz")
    assert labels.dtype == np.uint8
    assert labels.shape == source.shape
    assert set(np.unique(labels)) <= {0, 1, 2, 4}
    assert len(np.unique(labels)) > 2
    np.testing.assert_array_equal(image.affine, source.affine)
    probabilities, _ = read_image(tmp_path / "out/BraTS2021_00001_probabilities.nii.gz")
    assert probabilities.shape == (*labels.shape, 3)
    whole_tumour = probabilities[..., 1] > 0.5
    np.testing.assert_array_equal((labels == 4) | (labels == 1) | ((labels == 2) & whole_tumour), labels > 0)
    np.testing.assert_array_equal(labels == 4, probabilities[..., 2] > 0.5)
    assert (tmp_path / "out/BraTS2021_00001.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((tmp_path / "out/predict.json").read_text())
    entry = report["cases"]["BraTS2021_00001"]
    assert report["settings"]["weights"] == [open_checkpoint(swin_unetr).digest]
    assert entry["windows"] == 4
    assert entry["volumes_ml"]["ET"] == pytest.approx((labels == 4).sum() / 1000, abs=1e-3)
    assert "4 windows" in capsys.readouterr().out


def test_the_enhancing_tumour_is_3_in_data_since_2023(model, tmp_path):
    case = write_case(tmp_path, "BraTS-GLI-00001-000", ends=("t2f", "t1c", "t1n", "t2w"), sep="-")
    assert run("predict", "-i", case, "-o", tmp_path / "out", "-m", model) == 0
    labels, _ = read_image(tmp_path / "out/BraTS-GLI-00001-000.nii.gz")
    assert 3 in labels
    assert 4 not in labels


def test_the_order_of_the_files_does_not_matter(model, tmp_path):
    case = write_case(tmp_path)
    files = [case / f"{case.name}_{end}.nii.gz" for end in BRATS]
    assert run("predict", "-i", *files, "-o", tmp_path / "a", "-m", model) == 0
    assert run("predict", "-i", *files[::-1], "-o", tmp_path / "b", "-m", model) == 0
    first, _ = read_image(next((tmp_path / "a").glob("*.nii.gz")))
    second, _ = read_image(next((tmp_path / "b").glob("*.nii.gz")))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("codes", "tilt"), [("RAS", 0.0), ("SPL", 0.0), ("PIR", 0.0), ("RAS", 0.3)])
def test_any_orientation_gives_the_same_segmentation_on_its_own_grid(model, tmp_path, codes, tilt):
    case = write_case(tmp_path)
    other = write_reoriented(case, tmp_path / "reoriented" / "BraTS2021_00002", codes, tilt)
    assert run("predict", "-i", case, "-o", tmp_path / "out", "-m", model) == 0
    assert run("predict", "-i", other, "-o", tmp_path / "out", "-m", model) == 0
    labels, image = read_image(tmp_path / "out/BraTS2021_00001.nii.gz")
    other_labels, other_image = read_image(tmp_path / "out/BraTS2021_00002.nii.gz")
    source = nib.load(next(other.iterdir()))
    np.testing.assert_array_equal(other_image.affine, source.affine)
    to_first = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(codes), nib.io_orientation(image.affine))
    np.testing.assert_array_equal(nib.orientations.apply_orientation(other_labels, to_first), labels)


def test_finished_cases_are_skipped_and_changed_ones_are_not(model, tmp_path, capsys):
    case = write_case(tmp_path)
    arguments = ("predict", "-i", case, "-o", tmp_path / "out", "-m", model)
    assert run(*arguments) == 0
    before = (tmp_path / "out/BraTS2021_00001.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "skipped" in capsys.readouterr().out
    assert (tmp_path / "out/BraTS2021_00001.nii.gz").stat().st_mtime_ns == before
    assert run(*arguments, "--blend", "constant") == 0  # other settings have another result
    assert "skipped" not in capsys.readouterr().out
    (tmp_path / "out/BraTS2021_00001.nii.gz").write_bytes(b"cut short")
    assert run(*arguments, "--blend", "constant") == 0
    assert read_image(tmp_path / "out/BraTS2021_00001.nii.gz")[0].ndim == 3


def test_a_case_with_a_fault_does_not_stop_the_others(model, tmp_path, capsys):
    data = tmp_path / "data"
    for name in ("a", "b", "c", "d"):
        write_case(data, f"BraTS2021_{name}")
    bad = data / "BraTS2021_a" / "BraTS2021_a_t1.nii.gz"
    bad.write_bytes(bad.read_bytes()[:3000])
    (data / "BraTS2021_b" / "BraTS2021_b_t2.nii.gz").unlink()
    image = nib.load(data / "BraTS2021_c" / "BraTS2021_c_t1.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine), data / "BraTS2021_c" / "BraTS2021_c_t1.nii.gz")
    assert run("predict", "-i", data, "-o", tmp_path / "out", "-m", model) == 1
    errors = capsys.readouterr().err
    assert "BraTS2021_a_t1.nii.gz" in errors
    assert "T2" in errors
    assert "constant" in errors
    assert "3 of 4 cases failed" in errors
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["BraTS2021_d.nii.gz", "predict.json"]
    report = json.loads((tmp_path / "out/predict.json").read_text())["cases"]
    assert "error" in report["BraTS2021_a"]
    assert "error" not in report["BraTS2021_d"]


def test_files_of_unknown_origin_are_not_replaced(model, tmp_path, capsys):
    case = write_case(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/BraTS2021_00001.nii.gz").write_bytes(b"precious")
    assert run("predict", "-i", case, "-o", tmp_path / "out", "-m", model) == 1
    assert (tmp_path / "out/BraTS2021_00001.nii.gz").read_bytes() == b"precious"
    assert "--overwrite" in capsys.readouterr().err
    assert run("predict", "-i", case, "-o", tmp_path / "out", "-m", model, "--overwrite") == 0


def test_a_crop_gives_the_segmentation_of_the_foreground_alone(model, tmp_path):
    """The first 6 and the last 5 planes are zero. Two windows cover the other planes; they extend from plane 3 to 98."""
    case = write_case(tmp_path / "whole", shape=(100, 40, 34))
    foreground = tmp_path / "foreground" / case.name
    foreground.mkdir(parents=True)
    for path in case.iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[3:99], image.affine), foreground / path.name)
    for source, out, more in ((case, "a", ("--crop",)), (foreground, "b", ())):
        assert run("predict", "-i", source, "-o", tmp_path / out, "-m", model, "--probabilities", *more) == 0
    for name in (f"{case.name}.nii.gz", f"{case.name}_probabilities.nii.gz"):
        cropped, alone = read_image(tmp_path / "a" / name)[0], read_image(tmp_path / "b" / name)[0]
        np.testing.assert_array_equal(cropped[6:-5], alone[3:-4])
        assert alone[:3].any()  # the network also labels voxels of the background
        assert not cropped[:6].any()
        assert not cropped[-5:].any()


def test_mirroring_and_an_ensemble_average_logits(model, tmp_path):
    case = write_case(tmp_path)
    files = tuple(case / f"{case.name}_{end}.nii.gz" for end in BRATS)
    network, other = load_checkpoint(model), SmallNetwork(CONFIG, rngs=nnx.Rngs(1))
    x = np.random.default_rng(0).normal(size=(1, 64, 32, 32, 4)).astype(np.float32)
    forward = jax.jit(lambda network, x: network(x))
    mean = (np.asarray(forward(network, x)) + np.asarray(forward(other, x))) / 2
    np.testing.assert_allclose(Segmenter([network, other], TASK).logits(x), mean, atol=1e-5)
    mirrored = Segmenter([network], TASK, mirror=True)
    np.testing.assert_allclose(mirrored.logits(x[:, ::-1, :, ::-1]), np.asarray(mirrored.logits(x))[:, ::-1, :, ::-1], atol=1e-5)
    result = Segmenter([network, other], TASK, overlap=0.0).segment(Case("x", files, BRATS))
    assert result.labels.shape == (50, 40, 34)


def test_every_checkpoint_format_gives_the_same_labels(swin_unetr, tmp_path):
    case = write_case(tmp_path)
    assert run("convert", swin_unetr, tmp_path / "net.pt") == 0
    assert run("convert", tmp_path / "net.pt", tmp_path / "net.safetensors", "--downsample", "merging") == 0
    results = []
    for name, more in ((swin_unetr, ()), (tmp_path / "net.pt", ("--downsample", "merging")), (tmp_path / "net.safetensors", ())):
        out = tmp_path / f"out{len(results)}"
        assert run("predict", "-i", case, "-o", out, "-m", name, "--roi", *ROI, *more) == 0
        results.append(read_image(out / "BraTS2021_00001.nii.gz")[0])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_the_precision_applies_while_cases_are_segmented(model, tmp_path, monkeypatch):
    precisions = []

    def predict_cases(*_, identity, **__):
        precisions.append((identity["precision"], jax.config.jax_default_matmul_precision))
        return []

    monkeypatch.setattr("swinunetr_jax.inference.batch.predict_cases", predict_cases)
    command = ("predict", "-i", write_case(tmp_path), "-o", tmp_path / "out", "-m", model)
    assert run(*command, "--precision", "tensorfloat32") == 0
    assert run(*command) == 0
    # Without the option, JAX's setting applies, which conftest.py sets.
    assert precisions == [("tensorfloat32",) * 2, ("highest",) * 2]


def test_invalid_input_is_reported_in_one_sentence(swin_unetr, tmp_path, capsys):
    case = write_case(tmp_path)
    out = ("-o", tmp_path / "out")
    blocked = tmp_path / "file"
    blocked.write_text("")
    commands = {
        "does not exist": ("predict", "-i", tmp_path / "no", *out, "-m", swin_unetr),
        "no.pt": ("predict", "-i", case, *out, "-m", tmp_path / "no.pt"),
        "multiples of 32": ("predict", "-i", case, *out, "-m", swin_unetr, "--roi", 60, 64, 64),
        "overlap": ("predict", "-i", case, *out, "-m", swin_unetr, "--overlap", 1),
        "cannot be written": ("predict", "-i", case, "-o", blocked / "out", "-m", swin_unetr),
        "downsample": ("convert", swin_unetr, tmp_path / "x", "--downsample", "legacy"),
        "exists already": ("convert", swin_unetr, case),
        "--labels": ("predict", "-i", case, *out, "-m", swin_unetr, "--labels", "a", "b"),
    }
    for text, command in commands.items():
        assert run(*command) == 2, text
        printed = capsys.readouterr().err
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1, printed
        assert text in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("5.6")
@pytest.mark.parametrize("name", ["out.mha", "labels.npz", "report.json"])
def test_an_output_that_is_named_like_a_file_is_refused(tmp_path, capsys, name):
    assert run("predict", "-i", tmp_path, "-o", tmp_path / name, "-m", tmp_path / "model") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and f"{name} names a file" in printed
    assert "a folder, or for one case a name that ends with .nii.gz" in printed and not (tmp_path / name).exists()


def test_quiet_and_verbose_output_and_a_viewer_page(model, tmp_path, capsys):
    write_case(tmp_path / "in" / "one")
    arguments = ["-i", str(tmp_path / "in"), "-m", str(model), "--roi", *ROI]
    quiet = run("predict", *arguments, "-o", str(tmp_path / "quiet"), "-q", "--device", "cpu")
    assert quiet == 0 and capsys.readouterr().out == ""
    assert run("predict", *arguments, "-o", str(tmp_path / "verbose"), "-v", "--viewer") == 0
    out = capsys.readouterr().out
    page = (tmp_path / "verbose/BraTS2021_00001.html").read_text()
    assert '"name": "prediction"' in page and str(tmp_path) not in page
    record = json.loads((tmp_path / "verbose/predict.json").read_text())
    assert record["cases"]["BraTS2021_00001"]["outputs"]["viewer"]["path"] == "BraTS2021_00001.html"
    assert f"jax {jax.__version__}" in out and "[1/1] BraTS2021_00001: reading " in out and " s, computing " in out
    for change, expected in [
        (["-q", "-v"], "--quiet and --verbose contradict each other"),
        (["--device", "tpu"], "JAX finds no tpu on this machine, only cpu"),
        (["--device", "cpu:99"], "the device cpu:99 does not exist"),
        (["--device", "npu"], "the device 'npu' is unknown, expected cpu, gpu or tpu"),
    ]:
        assert run("predict", *arguments, "-o", str(tmp_path / "wrong"), *change) == 2
        assert expected in capsys.readouterr().err


def test_info_shows_the_content_of_a_checkpoint(swin_unetr, tmp_path, capsys):
    assert run("info", swin_unetr) == 0
    text = capsys.readouterr().out
    assert "FLAIR, T1ce, T1, T2" in text
    assert "TC = 1, WT = 2, ET = 4" in text
    assert run("info", swin_unetr, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["config"]["feature_size"] == 12
    assert run("convert", swin_unetr, tmp_path / "net.pt") == 0
    capsys.readouterr()
    assert run("info", tmp_path / "net.pt") == 0
    assert "not stated in the file" in capsys.readouterr().out


def test_a_real_scan_is_segmented_as_by_monais_pipeline(shared_data, tmp_path):
    """The scan is a part of a brain MRI with four channels, which is small enough for the default run. Both blends are compared."""
    torch = pytest.importorskip("torch")
    from monai import transforms as mt
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import SwinUNETR as Reference

    names = ("FLAIR", "T1POST", "T1", "T2")
    case = tmp_path / "patient19"
    case.mkdir()
    for name in names:
        image = nib.load(shared_data / "open_ms/patient19" / f"{name}.nii.gz").slicer[60:124, 70:118, 60:108]
        nib.save(image, case / f"{name}.nii.gz")
    torch.manual_seed(0)
    reference = Reference(4, 3, feature_size=12, depths=(1, 1, 1, 1)).eval()
    torch.save(reference.state_dict(), tmp_path / "net.pt")
    load = mt.Compose(
        [
            mt.LoadImage(ensure_channel_first=True, image_only=True),
            mt.Orientation("LPS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            mt.NormalizeIntensity(nonzero=True, channel_wise=True),
        ],
        map_items=False,  # the four files are the channels of one image
    )
    image = torch.as_tensor(load([case / f"{name}.nii.gz" for name in names]))[None]
    for blend in ("gaussian", "constant"):
        with torch.no_grad():
            logits = sliding_window_inference(image, (64, 32, 32), 1, reference, overlap=0.5, mode=blend)[0].numpy()
        expected = np.zeros(logits.shape[1:], np.uint8)
        for channel, value in ((1, 2), (0, 1), (2, 4)):
            expected[logits[channel] > 0] = value
        out = tmp_path / blend
        options = ("--downsample", "merging", "--roi", 64, 32, 32, "--blend", blend)
        assert run("predict", "-i", case, "-o", out, "-m", tmp_path / "net.pt", *options) == 0
        labels, written = read_image(out / "patient19.nii.gz")
        to_lps = nib.orientations.ornt_transform(
            nib.io_orientation(written.affine), nib.orientations.axcodes2ornt(("L", "P", "S"))
        )
        labels = nib.orientations.apply_orientation(labels, to_lps)
        assert (labels == expected).mean() >= 0.9999
        assert len(np.unique(labels)) > 1
    shutil.rmtree(out)
