"""`swinunetr predict` and `convert` as a user runs them, on small scans made here and, where present, on a real one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
from flax import nnx
from small_network import SmallNetwork, forget, put_in_place

from swinunetr_jax import InputError, SwinUNETR, SwinUNETRConfig, Task, cli, load_checkpoint, open_checkpoint, save_checkpoint
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.inference import predict
from swinunetr_jax.inference.plan import Plan
from swinunetr_jax.inference.predict import Segmenter, expand_box, foreground_box
from swinunetr_jax.task import Output

ROI = ("64", "32", "32")
BRATS = ("flair", "t1ce", "t1", "t2")
KILLED = (
    f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pytest
from small_network import put_in_place
put_in_place(pytest.MonkeyPatch())
"""
    + """
from swinunetr_jax import cli
from swinunetr_jax.data.discovery import prediction_record as record
from swinunetr_jax.inference import batch, predict

predict.compiler_options = lambda: {"xla_backend_optimization_level": 0}
moment, *arguments = sys.argv[1:]
write, add = batch.write_volume, record.Record._add

def die_at(*now):
    name = {"a case is reported": "BraTS2021_a", "a label map": ".BraTS2021_b.nii.gz", "a report": "BraTS2021_b"}[moment]
    if now[0] == moment and now[1].startswith(name):
        os.kill(os.getpid(), signal.SIGKILL)

def write_volume(path, *rest):
    write(path, *rest)
    die_at("a label map", path.name)

def add_entry(self, case, entry):
    done = "seconds" in entry
    if done:
        die_at("a report", case.name)
    add(self, case, entry)
    if done:
        die_at("a case is reported", case.name)

batch.write_volume, record.Record._add = write_volume, add_entry
cli.main(arguments)
"""
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Compiling takes longer than these networks: XLA is to try less hard."""
    monkeypatch.setattr(predict, "compiler_options", lambda: {"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network of random weights whose outputs are balanced enough that every label occurs."""
    path = tmp_path_factory.mktemp("model") / "net"
    config = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=12, depths=(1, 1, 1, 1))
    network = SwinUNETR(config, rngs=nnx.Rngs(0))
    network.out.bias[...] = np.array([0.0, 0.05, -0.05], np.float32)
    save_checkpoint(path, network, task=Task.brats(roi=(64, 32, 32)))
    return path


def write_case(folder, name="BraTS2021_00001", shape=(50, 40, 34), affine=None, ends=None, sep="_"):
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
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    return stopped.value.code


def read(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image


def test_a_case_folder(model, tmp_path, capsys):
    case = write_case(tmp_path)
    assert run("predict", "-i", case, "-o", tmp_path / "out", "-m", model, "--preview", "--probabilities") == 0
    labels, image = read(tmp_path / "out/BraTS2021_00001.nii.gz")
    source = nib.load(case / "BraTS2021_00001_flair.nii.gz")
    assert labels.dtype == np.uint8
    assert labels.shape == source.shape
    assert set(np.unique(labels)) <= {0, 1, 2, 4}
    assert len(np.unique(labels)) > 2
    np.testing.assert_array_equal(image.affine, source.affine)
    probabilities, _ = read(tmp_path / "out/BraTS2021_00001_probabilities.nii.gz")
    assert probabilities.shape == (*labels.shape, 3)
    whole = probabilities[..., 1] > 0.5
    np.testing.assert_array_equal((labels == 4) | (labels == 1) | ((labels == 2) & whole), labels > 0)
    np.testing.assert_array_equal(labels == 4, probabilities[..., 2] > 0.5)
    assert (tmp_path / "out/BraTS2021_00001.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((tmp_path / "out/predict.json").read_text())
    entry = report["cases"]["BraTS2021_00001"]
    assert report["settings"]["weights"] == [open_checkpoint(model).digest]
    assert entry["windows"] == 4
    assert entry["volumes_ml"]["ET"] == pytest.approx((labels == 4).sum() / 1000, abs=1e-3)
    assert "4 windows" in capsys.readouterr().out


def test_since_2023_the_enhancing_tumour_is_3(model, tmp_path):
    case = write_case(tmp_path, "BraTS-GLI-00001-000", ends=("t2f", "t1c", "t1n", "t2w"), sep="-")
    assert run("predict", "-i", case, "-o", tmp_path / "out", "-m", model) == 0
    labels, _ = read(tmp_path / "out/BraTS-GLI-00001-000.nii.gz")
    assert 3 in labels
    assert 4 not in labels


def test_channels_go_by_name_not_by_order(model, tmp_path):
    case = write_case(tmp_path)
    files = [case / f"{case.name}_{end}.nii.gz" for end in BRATS]
    assert run("predict", "-i", *files, "-o", tmp_path / "a", "-m", model) == 0
    assert run("predict", "-i", *files[::-1], "-o", tmp_path / "b", "-m", model) == 0
    first, _ = read(next((tmp_path / "a").glob("*.nii.gz")))
    second, _ = read(next((tmp_path / "b").glob("*.nii.gz")))
    np.testing.assert_array_equal(first, second)


def turned(source, target, codes, tilt=0.0):
    """A copy of a case in another orientation, its grid tilted by some radians about x."""
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


@pytest.mark.parametrize(("codes", "tilt"), [("RAS", 0.0), ("SPL", 0.0), ("PIR", 0.0), ("RAS", 0.3)])
def test_any_orientation_gives_the_same_segmentation_on_its_own_grid(model, tmp_path, codes, tilt):
    case = write_case(tmp_path)
    other = turned(case, tmp_path / "turned" / "BraTS2021_00002", codes, tilt)
    assert run("predict", "-i", case, "-o", tmp_path / "out", "-m", model) == 0
    assert run("predict", "-i", other, "-o", tmp_path / "out", "-m", model) == 0
    labels, image = read(tmp_path / "out/BraTS2021_00001.nii.gz")
    again, other_image = read(tmp_path / "out/BraTS2021_00002.nii.gz")
    source = nib.load(next(other.iterdir()))
    np.testing.assert_array_equal(other_image.affine, source.affine)
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(codes), nib.io_orientation(image.affine))
    np.testing.assert_array_equal(nib.orientations.apply_orientation(again, back), labels)


def test_finished_cases_are_skipped_and_changed_ones_are_not(model, tmp_path, capsys):
    case = write_case(tmp_path)
    arguments = ("predict", "-i", case, "-o", tmp_path / "out", "-m", model)
    assert run(*arguments) == 0
    before = (tmp_path / "out/BraTS2021_00001.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    assert run(*arguments) == 0
    assert "skipped" in capsys.readouterr().out
    assert (tmp_path / "out/BraTS2021_00001.nii.gz").stat().st_mtime_ns == before
    assert run(*arguments, "--blend", "constant") == 0  # other settings, another result
    assert "skipped" not in capsys.readouterr().out
    (tmp_path / "out/BraTS2021_00001.nii.gz").write_bytes(b"cut short")
    assert run(*arguments, "--blend", "constant") == 0
    assert read(tmp_path / "out/BraTS2021_00001.nii.gz")[0].ndim == 3


def test_killed_midway_only_what_is_missing_is_done(programs, tmp_path, capsys, monkeypatch):
    put_in_place(monkeypatch)
    config = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=12, depths=(1, 1, 1, 1))
    model = tmp_path / "net"
    save_checkpoint(model, SmallNetwork(config, rngs=nnx.Rngs(0)), task=Task.brats(roi=(64, 32, 32)))
    for name in ("a", "b", "c"):
        write_case(tmp_path / "data", f"BraTS2021_{name}")
    arguments = ("predict", "-i", tmp_path / "data", "-m", model, "--precision", "float32", "--probabilities", "-o")
    assert run(*arguments, tmp_path / "whole") == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("BraTS*")}
    assert len(whole) == 6
    for moment in ("a case is reported", "a label map", "a report"):
        command = [sys.executable, "-c", KILLED, moment, *map(str, arguments), tmp_path / moment]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs)}
        killed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        there = {path.name: path.read_bytes() for path in (tmp_path / moment).glob("BraTS*")}
        assert 2 <= len(there) < 6 and there.items() <= whole.items()  # what has its final name is complete
        capsys.readouterr()
        assert run(*arguments, tmp_path / moment) == 0
        assert re.findall(r"(\S+): done already", capsys.readouterr().out) == ["BraTS2021_a"]
        assert {path.name: path.read_bytes() for path in (tmp_path / moment).glob("BraTS*")} == whole
        assert not list((tmp_path / moment).glob(".*"))
    monkeypatch.undo()
    forget()


def test_a_bad_case_does_not_stop_the_others(model, tmp_path, capsys):
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


def test_other_peoples_files_are_not_replaced(model, tmp_path, capsys):
    case = write_case(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/BraTS2021_00001.nii.gz").write_bytes(b"precious")
    assert run("predict", "-i", case, "-o", tmp_path / "out", "-m", model) == 1
    assert (tmp_path / "out/BraTS2021_00001.nii.gz").read_bytes() == b"precious"
    assert "--overwrite" in capsys.readouterr().err
    assert run("predict", "-i", case, "-o", tmp_path / "out", "-m", model, "--overwrite") == 0


def test_cropping_is_segmenting_the_box_of_the_brain_alone(model, tmp_path):
    """Planes 0 to 5 and the last 5 of the first axis hold nothing; two windows take the rest, and reach from plane 3 to 98."""
    case = write_case(tmp_path / "whole", shape=(100, 40, 34))
    near = tmp_path / "near" / case.name
    near.mkdir(parents=True)
    for path in case.iterdir():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[3:99], image.affine), near / path.name)
    for source, out, more in ((case, "a", ("--crop",)), (near, "b", ())):
        assert run("predict", "-i", source, "-o", tmp_path / out, "-m", model, "--probabilities", *more) == 0
    for name in (f"{case.name}.nii.gz", f"{case.name}_probabilities.nii.gz"):
        cropped, alone = read(tmp_path / "a" / name)[0], read(tmp_path / "b" / name)[0]
        np.testing.assert_array_equal(cropped[6:-5], alone[3:-4])
        assert alone[:3].any()  # what a network makes of nothing is not looked at
        assert not cropped[:6].any()
        assert not cropped[-5:].any()


def test_boxes_of_many_sizes_have_few_shapes():
    """Windows of 96 and overlap 0.5 cover 96, 144, 192, … voxels; a scan of 155 planes ends before 192."""
    overlap, roi, grid = 0.5, (96, 96, 96), (240, 240, 155)
    shapes = set()
    for size in (90, 96, 97, 120, 144, 145, 150, 155):
        box = tuple(slice(whole - size, whole) for whole in grid)
        plan = Plan.of((size,) * 3, roi, overlap)
        seen = expand_box(box, plan.max_extent(overlap), grid)
        assert all(s.start >= 0 and s.start <= b.start and b.stop <= s.stop <= whole for b, s, whole in zip(box, seen, grid))
        shape = tuple(part.stop - part.start for part in seen)
        assert Plan.of(shape, roi, overlap).windows == plan.windows
        shapes.add(shape)
    assert shapes == {(96, 96, 96), (144, 144, 144), (192, 192, 155)}
    assert expand_box((slice(10, 20),), (13,), (40,)) == (slice(9, 22),)
    assert expand_box((slice(1, 20),), (30,), (25,)) == (slice(0, 25),)


def test_the_box_of_the_foreground():
    array = np.zeros((5, 4, 3, 2), np.float32)
    assert foreground_box(array) == (slice(0, 5), slice(0, 4), slice(0, 3))  # nothing to look for: everything is looked at
    array[1, 2, 0, 1] = -1
    array[3, 2, 1, 0] = 2
    assert foreground_box(array) == (slice(1, 4), slice(2, 3), slice(0, 2))


def test_a_crop_needs_a_class_for_what_is_around_it():
    network = SwinUNETR(SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12), rngs=nnx.Rngs(0))
    task = Task(kind="classes", outputs=(Output(name="grey", value=1), Output(name="white", value=2)))
    Segmenter([network], task)
    with pytest.raises(InputError, match="grey, white"):
        Segmenter([network], task, crop=True)
    outside = Segmenter([network], Task.classes(2), roi=(64, 32, 32), crop=True, overlap=0.0)
    array = np.zeros((80, 32, 32, 1), np.float32)
    array[4:20] = 1
    labels, probabilities, _ = outside.run(array, probabilities=True)
    np.testing.assert_array_equal(probabilities[:4], np.broadcast_to(np.float32([1, 0]), (4, 32, 32, 2)))
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert not labels[20:].any()


def test_mirroring_and_an_ensemble_average_logits(model, tmp_path):
    case = write_case(tmp_path)
    files = tuple(case / f"{case.name}_{end}.nii.gz" for end in BRATS)
    network = load_checkpoint(model)
    task = Task.brats(roi=(64, 32, 32))
    other = SwinUNETR(network.config, rngs=nnx.Rngs(1))
    x = np.random.default_rng(0).normal(size=(1, 64, 32, 32, 4)).astype(np.float32)
    forward = jax.jit(lambda network, x: network(x), compiler_options={"xla_backend_optimization_level": 0})
    mean = (np.asarray(forward(network, x)) + np.asarray(forward(other, x))) / 2
    np.testing.assert_allclose(Segmenter([network, other], task).logits(x), mean, atol=1e-5)
    mirrored = Segmenter([network], task, mirror=True)
    np.testing.assert_allclose(mirrored.logits(x[:, ::-1, :, ::-1]), np.asarray(mirrored.logits(x))[:, ::-1, :, ::-1], atol=1e-5)
    result = Segmenter([network, other], task, overlap=0.0).segment(Case("x", files, BRATS))
    assert result.labels.shape == (50, 40, 34)


def test_every_checkpoint_format_gives_the_same_labels(model, tmp_path):
    case = write_case(tmp_path)
    assert run("convert", model, tmp_path / "net.pt") == 0
    assert run("convert", tmp_path / "net.pt", tmp_path / "net.safetensors", "--downsample", "merging") == 0
    results = []
    for name, more in ((model, ()), (tmp_path / "net.pt", ("--downsample", "merging")), (tmp_path / "net.safetensors", ())):
        out = tmp_path / f"out{len(results)}"
        assert run("predict", "-i", case, "-o", out, "-m", name, "--roi", *ROI, *more) == 0
        results.append(read(out / "BraTS2021_00001.nii.gz")[0])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_classes(tmp_path):
    network = SwinUNETR(SwinUNETRConfig(in_channels=1, out_channels=3, feature_size=12), rngs=nnx.Rngs(0))
    save_checkpoint(tmp_path / "net", network, task=Task.classes(3, roi=(64, 32, 32)))
    image = nib.Nifti1Image(np.random.default_rng(0).normal(100, 9, (20, 33, 31)).astype(np.float32), np.eye(4))
    nib.save(image, tmp_path / "scan.nii.gz")
    assert run("predict", "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "-m", tmp_path / "net") == 0
    assert set(np.unique(read(tmp_path / "out/scan.nii.gz")[0])) <= {0, 1, 2}


def test_the_precision_of_products_holds_while_cases_are_run(model, tmp_path, monkeypatch):
    seen = []

    def cases_are_run(*_, identity, **__):
        seen.append((identity["precision"], jax.config.jax_default_matmul_precision))
        return []

    monkeypatch.setattr("swinunetr_jax.inference.batch.predict_cases", cases_are_run)
    command = ("predict", "-i", write_case(tmp_path), "-o", tmp_path / "out", "-m", model)
    assert run(*command, "--precision", "tensorfloat32") == 0
    assert run(*command) == 0
    assert seen == [("tensorfloat32",) * 2, ("highest",) * 2]  # without the option what jax was told, here by conftest.py


def test_bad_input_is_one_sentence(model, tmp_path, capsys):
    case = write_case(tmp_path)
    out = ("-o", tmp_path / "out")
    blocked = tmp_path / "file"
    blocked.write_text("")
    commands = {
        "does not exist": ("predict", "-i", tmp_path / "no", *out, "-m", model),
        "no.pt": ("predict", "-i", case, *out, "-m", tmp_path / "no.pt"),
        "multiples of 32": ("predict", "-i", case, *out, "-m", model, "--roi", 60, 64, 64),
        "overlap": ("predict", "-i", case, *out, "-m", model, "--overlap", 1),
        "cannot be written": ("predict", "-i", case, "-o", blocked / "out", "-m", model),
        "downsample": ("convert", model, tmp_path / "x", "--downsample", "legacy"),
        "exists already": ("convert", model, case),
        "--labels": ("predict", "-i", case, *out, "-m", model, "--labels", "a", "b"),
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
@pytest.mark.parametrize("name", ["out.nii.gz", "out.NII", "labels.nrrd", "report.json"])
def test_an_output_that_is_named_like_a_file_is_refused(tmp_path, capsys, name):
    assert run("predict", "-i", tmp_path, "-o", tmp_path / name, "-m", tmp_path / "model") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and f"{name} names a file" in printed
    assert not (tmp_path / name).exists()


@pytest.mark.fault("5.8")
def test_a_window_size_is_one_number_or_three():
    network = SwinUNETR(SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1)), rngs=nnx.Rngs(0))
    assert Segmenter([network], Task.classes(2), roi=64).roi == (64, 64, 64)
    for roi, got in ((90, "90 90 90"), ((96, 96), "96 96"), ((), "none"), ((64, 64, -32), "64 64 -32")):
        with pytest.raises(InputError, match=f"three multiples of 32, such as 96 96 96, got {got}"):
            Segmenter([network], Task.classes(2), roi=roi)


def test_info(model, tmp_path, capsys):
    assert run("info", model) == 0
    text = capsys.readouterr().out
    assert "FLAIR, T1ce, T1, T2" in text
    assert "TC = 1, WT = 2, ET = 4" in text
    assert run("info", model, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["config"]["feature_size"] == 12
    assert run("convert", model, tmp_path / "net.pt") == 0
    capsys.readouterr()
    assert run("info", tmp_path / "net.pt") == 0
    assert "not stated in the file" in capsys.readouterr().out


def test_a_real_scan_equals_monais_own_pipeline(shared_data, tmp_path):
    """A corner of a four-modality brain MRI, small enough for every run; both blends."""
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
        map_items=False,  # the four files are one image
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
        labels, written = read(out / "patient19.nii.gz")
        to_lps = nib.orientations.ornt_transform(
            nib.io_orientation(written.affine), nib.orientations.axcodes2ornt(("L", "P", "S"))
        )
        labels = nib.orientations.apply_orientation(labels, to_lps)
        assert (labels == expected).mean() >= 0.9999
        assert len(np.unique(labels)) > 1
    shutil.rmtree(out)
