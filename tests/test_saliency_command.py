"""`swinunetr saliency`: maps on the grid of each scan, the record, mistakes, and what remains after a kill.

The network is set by hand: its intermediate decoder2 is the mean brightness of 2³ voxels, and its logit grows with it. So the map is the
brightness above 0, and its peak is the brightest place of the scan.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from flax import nnx
from helpers.prediction import read_image, run
from helpers.small_network import SmallNetwork, forget, replace_swin_unetr

from swinunetr_jax import SwinUNETRConfig, Task, grad_cam, save_checkpoint
from swinunetr_jax.inference.saliency import SaliencyMapper
from swinunetr_jax.inference.saliency_batch import output_paths

pytestmark = pytest.mark.usefixtures("small_network")
CONFIG = SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1))
TASK = Task.classes(2, ("background", "spot"), orientation="LPS", roi=(64, 32, 32), intensity="none")
THRESHOLD = 5.0


def bright_network():
    """Returns the network: its feature 0 is the mean of 2³ voxels, and is the logit of the output 1; that of the background is constant."""
    network = SmallNetwork(CONFIG, rngs=nnx.Rngs(0))
    values = nnx.state(network, nnx.Param)
    nnx.update(network, jax.tree.map(jnp.zeros_like, values))
    network.coarse.kernel[...] = network.coarse.kernel[...].at[..., 0].set(1 / 8)
    network.out.kernel[...] = network.out.kernel[...].at[0, 1].set(1)
    network.out.bias[...] = jnp.array([THRESHOLD, 0])
    return network


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        replace_swin_unetr(patch)
        save_checkpoint(path := tmp_path_factory.mktemp("bright") / "net", bright_network(), task=TASK)
    forget()
    return path


def oblique(codes, sizes, tilt=0.3):
    """Returns the affine of a grid with these axis codes and voxel sizes, tilted about the x axis."""
    axes = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (1, 1, 1))[:3, :3].T
    rotation = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ axes @ np.diag(sizes)
    affine[:3, 3] = [-20, 31, 7]
    return affine


def write_spot(path, affine, shape, spot):
    """Writes a scan of faint noise with a bright ball around the voxel `spot`, and returns the position of its centre in mm."""
    offsets = np.stack(np.indices(shape), -1) - spot
    distance = np.linalg.norm(offsets @ affine[:3, :3].T, axis=-1)
    image = np.random.default_rng(0).uniform(0.1, 1, shape) + 20 * np.exp(-((distance / 6) ** 2))
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), path)
    return (affine @ [*spot, 1])[:3]


@pytest.mark.parametrize(("codes", "sizes", "spacing"), [("PIR", (1, 1, 1), None), ("ASL", (1, 0.8, 2), "1")])
def test_the_peak_is_in_the_structure_of_an_oblique_scan(model, tmp_path, codes, sizes, spacing):
    affine = oblique(codes, sizes)
    centre = write_spot(tmp_path / "a.nii.gz", affine, (70, 50, 36), (48, 33, 12))
    options = ["--spacing", spacing, spacing, spacing] if spacing else []
    arguments = ("saliency", "-i", tmp_path / "a.nii.gz", "-o", tmp_path / "out", "-m", model, "--layer", "decoder2", *options)
    assert run(*arguments) == 0
    heat, image = read_image(tmp_path / "out/a_saliency_spot.nii.gz")
    assert heat.dtype == np.float32 and heat.shape == (70, 50, 36)
    np.testing.assert_array_equal(image.affine, nib.load(tmp_path / "a.nii.gz").affine)
    assert heat.min() >= 0 and heat.max() == 1
    peak = np.unravel_index(heat.argmax(), heat.shape)
    position = (image.affine @ [*peak, 1])[:3]
    assert np.linalg.norm(position - centre) < 2.5  # blocks of 2 voxels, and up to a voxel of 2 mm
    entry = json.loads((tmp_path / "out/saliency.json").read_text())["cases"]["a"]
    assert entry["maps"]["spot"]["peak_voxel"] == list(peak)
    np.testing.assert_allclose(entry["maps"]["spot"]["peak_mm"], position, atol=1e-3)
    assert entry["maps"]["spot"]["voxels"] > 100
    assert (tmp_path / "out/a_saliency.png").read_bytes().startswith(b"\x89PNG")


def test_the_peak_is_in_the_lesion_of_a_real_scan_that_is_made_oblique(model, tmp_path, shared_data):
    """The box around the largest lesion of a FLAIR image, whose brightest 2³ voxels belong to the lesion."""
    folder = shared_data / "open_ms/patient19"
    box = (slice(55, 119), slice(75, 123), slice(70, 110))
    codes = nib.orientations.axcodes2ornt("PIR")
    for name in ("FLAIR", "LESION"):
        image = nib.load(folder / f"{name}.nii.gz").slicer[box]
        array = np.asarray(image.dataobj) / (16 if name == "FLAIR" else 1)  # lesions are above 5
        reorientation = nib.orientations.ornt_transform(nib.io_orientation(image.affine), codes)
        image = nib.Nifti1Image(array.astype(np.float32), image.affine).as_reoriented(reorientation)
        rotation = np.eye(4)
        rotation[:2, :2] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), rotation @ image.affine), tmp_path / f"{name}.nii.gz")
    scan = tmp_path / "FLAIR.nii.gz"
    assert (
        run("saliency", "-i", scan, "-o", tmp_path / "out", "-m", model, "--layer", "decoder2", "--spacing", 1.2, 1.2, 1.2) == 0
    )
    heat, image = read_image(next((tmp_path / "out").glob("*_spot.nii.gz")))
    lesion, truth = read_image(tmp_path / "LESION.nii.gz")
    entry = next(iter(json.loads((tmp_path / "out/saliency.json").read_text())["cases"].values()))
    voxel = np.linalg.inv(truth.affine) @ [*entry["maps"]["spot"]["peak_mm"], 1]  # from mm to the voxels of another file
    assert lesion[tuple(np.round(voxel[:3]).astype(int))] == 1
    assert heat[lesion > 0].mean() > 1.3 * heat[(lesion == 0) & (heat > 0)].mean()
    assert heat.max() == heat[tuple(entry["maps"]["spot"]["peak_voxel"])] == 1


def test_the_windows_share_the_weights_of_the_channels():
    """The score is a sum of averaged logits, so the gradient of all windows together is the number of voxels, whatever the overlap."""
    array = np.random.default_rng(0).uniform(0.1, 1, (128, 48, 32, 1)).astype(np.float32)
    array[60:72, 20:28, 8:16] += 20
    maps, voxels, windows = SaliencyMapper(bright_network(), TASK, layer="decoder2").run(array)
    assert windows == 6 and voxels == (12 * 8 * 8,)
    # One channel is used. Its gradient is 1 for each voxel of the score, and its mean is over the 6 windows of 32 × 16 × 16 coarse voxels.
    weight = voxels[0] / (6 * 32 * 16 * 16)
    assert maps.max() == pytest.approx(
        weight * array[60:72, 20:28, 8:16].reshape(6, 2, 4, 2, 4, 2).mean((1, 3, 5)).max(), rel=0.05
    )
    assert maps[..., 0][64:68, 22:26, 10:14].min() == pytest.approx(20.5 * weight, rel=0.05)
    assert maps[..., 0][:50].max() < 1.0 * weight  # windows without a voxel of the score have the same weights
    assert maps[..., 0][:50].min() > 0.2 * weight
    whole, *_ = SaliencyMapper(bright_network(), TASK, layer="decoder2", roi=(128, 64, 32), batch=3).run(array)
    np.testing.assert_allclose(whole / whole.max(), maps / maps.max(), atol=0.02)  # windows differ only at their borders


def test_one_window_gives_the_map_of_grad_cam():
    config = CONFIG.replace(in_channels=2, out_channels=3)
    network = SmallNetwork(config, rngs=nnx.Rngs(1))
    task = Task.classes(3, roi=(64, 32, 32), intensity="none")
    array = np.random.default_rng(0).normal(size=(64, 32, 32, 2)).astype(np.float32)
    maps, voxels, windows = SaliencyMapper(network, task, layer="decoder2", blend="constant").run(array)
    assert windows == 1 and min(voxels) > 1000
    for index, output in enumerate((1, 2)):
        expected = grad_cam(network, array[None], output=output, layer="decoder2", resize=True)[0]
        np.testing.assert_allclose(maps[..., index], expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def test_files_of_outputs_have_different_names():
    names = [path.name for path in output_paths(Path(), "a", ["left kidney", "left/kidney", "ET"]).values()]
    assert names == ["a_saliency_left_kidney.nii.gz", "a_saliency_left_kidney_2.nii.gz", "a_saliency_ET.nii.gz", "a_saliency.png"]


def test_other_cases_are_done_and_finished_ones_are_skipped(model, tmp_path, capsys):
    data = tmp_path / "data/imagesTr"
    data.mkdir(parents=True)
    for name in ("a", "b", "c"):
        write_spot(data / f"{name}.nii.gz", np.eye(4), (40, 34, 32), (20, 15, 12))
    (data / "b.nii.gz").write_bytes(b"no scan")
    image = nib.load(data / "c.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) / 100, image.affine), data / "c.nii.gz")
    description = {"name": "spots", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "spot"}, "test": []}
    description["training"] = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./{name}.nii.gz"} for name in "abc"]
    (tmp_path / "data/dataset.json").write_text(json.dumps(description))
    arguments = ("saliency", "-i", tmp_path / "data", "-o", tmp_path / "out", "-m", model, "--layer", "decoder2")
    assert run(*arguments) == 1
    printed = capsys.readouterr()
    assert "b: FAILED:" in printed.err and "Traceback" not in printed.err
    assert "c: note: the network assigns no voxel to spot, so its map is 0 everywhere" in printed.out
    assert not read_image(tmp_path / "out/c_saliency_spot.nii.gz")[0].any()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_saliency.png",
        "a_saliency_spot.nii.gz",
        "c_saliency.png",
        "c_saliency_spot.nii.gz",
        "saliency.json",
    ]
    assert run(*arguments) == 1
    assert "a: done already, skipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--layer", "decoder9"), "the network has no intermediate 'decoder9': choose one of"),
        (("--explain", "liver"), "the network has no output 'liver': choose one of background (0), spot (1)"),
        (("--roi", "96", "96", "90"), "the roi must be three multiples of 32"),
        (("-o", "heat.nii.gz"), "names a file, but results are written into a folder"),
    ],
)
def test_mistakes_are_one_sentence(model, tmp_path, capsys, options, text):
    write_spot(tmp_path / "a.nii.gz", np.eye(4), (40, 34, 32), (20, 15, 12))
    assert (
        run(
            "saliency", "-i", tmp_path / "a.nii.gz", "-m", model, *(() if "-o" in options else ("-o", tmp_path / "out")), *options
        )
        == 2
    )
    printed = capsys.readouterr().err
    assert text in printed and printed.startswith("error: ") and len(printed.splitlines()) == 1


def test_a_folder_of_predictions_is_refused(model, tmp_path, capsys):
    write_spot(tmp_path / "a.nii.gz", np.eye(4), (40, 34, 32), (20, 15, 12))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/predict.json").write_text("{}")
    assert run("saliency", "-i", tmp_path / "a.nii.gz", "-m", model, "-o", tmp_path / "out", "--layer", "decoder2") == 2
    assert "holds predictions" in capsys.readouterr().err


def test_a_folder_of_maps_is_refused_by_predict_and_evaluate(model, tmp_path, capsys):
    write_spot(tmp_path / "a.nii.gz", np.eye(4), (40, 34, 32), (20, 15, 12))
    (tmp_path / "out").mkdir()
    write_spot(tmp_path / "out/a_saliency_0.nii.gz", np.eye(4), (40, 34, 32), (20, 15, 12))
    (tmp_path / "out/saliency.json").write_text("{}")
    assert run("predict", "-i", tmp_path / "a.nii.gz", "-m", model, "-o", tmp_path / "out") == 2
    assert "holds saliency maps, which `evaluate` would take for label maps" in capsys.readouterr().err
    assert run("evaluate", tmp_path / "out", tmp_path / "out") == 2
    assert "holds saliency maps, not label maps" in capsys.readouterr().err


# This program computes maps and kills itself when its first picture, or its first map, has been written under a temporary name.
KILLED = (
    f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pytest
from helpers.small_network import replace_swin_unetr
replace_swin_unetr(pytest.MonkeyPatch())
"""
    + """
from swinunetr_jax import cli
from swinunetr_jax.inference import saliency_batch

write = saliency_batch.write_heat_picture

def write_and_kill(path, *rest):
    write(path, *rest)
    if path.name.startswith(".b_"):
        os.kill(os.getpid(), signal.SIGKILL)

saliency_batch.write_heat_picture = write_and_kill
cli.main(sys.argv[1:])
"""
)


def test_a_kill_leaves_no_incomplete_file(model, tmp_path, programs, capsys):
    for name in ("a", "b"):
        write_spot(tmp_path / f"{name}.nii.gz", np.eye(4), (40, 34, 32), (20, 15, 12))
    arguments = ("saliency", "-m", model, "--layer", "decoder2", "--precision", "float32", "-o", tmp_path / "out")
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": [f"{name}.nii.gz"]} for name in "ab"]}))
    command = [sys.executable, "-c", KILLED, *map(str, arguments), "-i", str(tmp_path / "list.json")]
    killed = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs)}
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    names = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert names == {"a_saliency.png", "a_saliency_spot.nii.gz", "saliency.json"}
    assert run(*arguments, "-i", tmp_path / "list.json") == 0
    assert "a: done already" in capsys.readouterr().out
    assert len(list((tmp_path / "out").iterdir())) == 5 and not list((tmp_path / "out").glob(".*"))
