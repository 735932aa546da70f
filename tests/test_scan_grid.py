"""Labels, probabilities and scores are computed from logits on the scan's grid, so that all of them agree.

The networks of these tests are simple functions, so that every correct result is known.
"""

import tracemalloc
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from helpers.refusals import refused

from swinunetr_jax import SwinUNETRConfig, Task
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.nifti import InverseReorient, write_volume
from swinunetr_jax.data.prepare.cache import prepare_training_cases
from swinunetr_jax.data.prepare.read_case import network_grid, read_case
from swinunetr_jax.data.prepare.resample import interpolated, resample
from swinunetr_jax.evaluation.evaluate import evaluate
from swinunetr_jax.evaluation.pairs import Reference, References
from swinunetr_jax.inference import scan_grid, slab_sum
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.metrics import dice
from swinunetr_jax.output import Output
from swinunetr_jax.training import plots
from swinunetr_jax.training.config import Validation
from swinunetr_jax.training.validation import ScanGrid, predict_options, validate

ROI = (32, 32, 64)
ANISOTROPIC = np.diag([-0.8, -0.8, 3.0, 1.0])
PERMUTED = np.array([[0, 0, 1.2, -9], [-0.9, 0, 0, 30], [0, 2.1, 0, 4], [0, 0, 0, 1.0]])
SHEARED = np.array([[0.9, 0.3, 0, 30], [0, -1.1, 0.4, 20], [0, 0, 2.3, -40], [0, 0, 0, 1]])
REGIONS = {
    "kind": "regions",
    "outputs": (Output(name="inner", value=1, members=(1,)), Output(name="all", value=2, members=(1, 2))),
    "paint": (1, 0),
}
CLASSES = {"kind": "classes", "outputs": tuple(Output(name=f"class {n}", value=n) for n in (0, 3, 4))}


def oblique():
    """Returns the affine of a scan that is rotated about two axes."""
    a, b = 0.3, 0.2
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return nib.affines.from_matvec(x @ z @ np.diag([-0.7, 1.0, 3.0]), [5, -7, 11])


def task_of(fields, **changes):
    """Returns a task with unchanged intensities and small windows."""
    return Task(**{"intensity": "none", "roi": ROI, **fields, **changes})


@pytest.fixture
def segmenter(monkeypatch):
    """Returns a function that creates Segmenters with functions of patches [n, *roi, c] as networks; by default logits are the input."""
    monkeypatch.setattr("swinunetr_jax.inference.predict.compiled_network", lambda model, mesh: model.function)

    def make(task, *functions, in_channels=None, **options):
        config = SwinUNETRConfig(in_channels=in_channels or len(task.outputs), out_channels=len(task.outputs), feature_size=12)
        models = [SimpleNamespace(config=config, function=function) for function in functions or (lambda x: x,)]
        return Segmenter(models, task, **options)

    return make


def smooth(shape, channels, seed=0):
    """Returns smooth noise, so that labels have surfaces."""
    coarse = np.random.default_rng(seed).normal(size=(*(size // 4 + 2 for size in shape), channels)).astype(np.float32)
    return interpolated(coarse, np.diag([0.25, 0.25, 0.25, 1]), shape) * 3


def save(folder, image, affine, label=None, name="scan"):
    """Writes a scan and optionally its label map, and returns the case."""
    nib.save(nib.Nifti1Image(image, affine), folder / f"{name}.nii.gz")
    if label is not None:
        nib.save(nib.Nifti1Image(label, affine), folder / f"{name}_label.nii.gz")
    return Case(name, (folder / f"{name}.nii.gz",), label=folder / f"{name}_label.nii.gz" if label is not None else None)


def expected(logits, task):
    """Returns labels, probabilities, and a mask of the voxels whose label depends on rounding."""
    logits = logits.astype(np.float64)
    values = np.array([output.value for output in task.outputs], np.uint8)
    if task.kind == "classes":
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        ordered = np.sort(logits, -1)
        return values[logits.argmax(-1)], shares / shares.sum(-1, keepdims=True), ordered[..., -1] - ordered[..., -2] < 1e-4
    labels = np.zeros(logits.shape[:-1], np.uint8)
    for channel in task.paint:
        labels[logits[..., channel] > 0] = values[channel]
    return labels, 1 / (1 + np.exp(-logits)), (np.abs(logits) < 1e-4).any(-1)


def labels_of(probabilities, task):
    """Returns the labels for probabilities."""
    values = np.array([output.value for output in task.outputs], np.uint8)
    if task.kind == "classes":
        return values[probabilities.argmax(-1)]
    labels = np.zeros(probabilities.shape[:-1], np.uint8)
    for channel in task.paint:
        labels[probabilities[..., channel] > 0.5] = values[channel]
    return labels


GRIDS = {"anisotropic": ANISOTROPIC, "oblique": oblique(), "permuted": PERMUTED, "sheared": SHEARED}


@pytest.mark.fault("1.1")
@pytest.mark.parametrize("fields", [REGIONS, CLASSES], ids=["regions", "classes"])
@pytest.mark.parametrize(("affine", "spacing"), [(affine, (1.5, 1.5, 2.0)) for affine in GRIDS.values()], ids=GRIDS.keys())
def test_labels_and_probabilities_are_those_of_all_logits_on_the_scans_grid(
    segmenter, tmp_path, monkeypatch, affine, spacing, fields
):
    for module in (scan_grid, slab_sum):
        monkeypatch.setattr(module, "PIECE_BYTES", 40_000)  # a few planes, so that there are many pieces
    task = task_of(fields, orientation="RAS", spacing=spacing)
    case = save(tmp_path, smooth((46, 30, 21), len(task.outputs)), affine)
    read_scan = read_case(case, task, len(task.outputs))
    result = segmenter(task).segment(case, probabilities=True)
    resampled = resample(
        read_scan.array.astype(np.float64), read_scan.affine, read_scan.back.reorient.shape, read_scan.back.source
    )
    labels, probabilities, ties = expected(read_scan.back.reorient.apply(resampled), task)
    assert result.labels.shape == (46, 30, 21) and len(np.unique(labels)) == 3 and ties.mean() < 1e-3
    np.testing.assert_array_equal(result.labels[~ties], labels[~ties])
    np.testing.assert_allclose(result.probabilities, probabilities, atol=2e-5)
    np.testing.assert_array_equal(result.labels, labels_of(result.probabilities, task))


@pytest.mark.fault("1.1")
def test_an_ensemble_with_mirrored_windows_is_resampled_in_the_same_way(segmenter, tmp_path):
    task = task_of(REGIONS, spacing=(2.0, 2.0, 2.0))
    case = save(tmp_path, smooth((40, 30, 21), 2), ANISOTROPIC)
    ensemble = segmenter(task, lambda x: x * 3, lambda x: -x, mirror=True).segment(case, probabilities=True)
    single = segmenter(task).segment(case, probabilities=True)
    np.testing.assert_allclose(ensemble.probabilities, single.probabilities, atol=1e-5)
    np.testing.assert_array_equal(ensemble.labels, labels_of(ensemble.probabilities, task))


@pytest.mark.fault("1.1")
@pytest.mark.parametrize("affine", [ANISOTROPIC, SHEARED], ids=["straight", "sheared"])
def test_a_resampled_crop_is_surrounded_by_background(segmenter, tmp_path, affine):
    task = task_of(CLASSES, spacing=(1.3, 1.3, 2.0))
    image = smooth((44, 40, 24), 3)
    image[:12] = image[30:] = image[:, :9] = image[:, :, 18:] = 0
    case = save(tmp_path, image, affine)
    cropped = segmenter(task, lambda x: x + jnp.array([-9.0, 0, 0]), crop=True).segment(case, probabilities=True)
    uncropped = segmenter(task, lambda x: x + jnp.array([-9.0, 0, 0])).segment(case, probabilities=True)
    outside = cropped.probabilities[..., 0] == 1
    assert 0.4 < outside.mean() < 0.9 and not cropped.labels[outside].any()
    np.testing.assert_array_equal(cropped.probabilities[outside][:, 1:], 0)
    assert cropped.labels[~outside].all()  # the network itself predicts no background
    inner = np.zeros_like(outside)
    inner[15:27, 12:37, 3:15] = affine is ANISOTROPIC
    np.testing.assert_allclose(cropped.probabilities[inner], uncropped.probabilities[inner], atol=1e-5)
    np.testing.assert_array_equal(cropped.labels, labels_of(cropped.probabilities, task))


BALLS = [
    ((0.76, 0.76, 3.0), (1.5, 1.5, 2.0), 12, 0.996),
    ((0.76, 0.76, 3.0), (1.5, 1.5, 2.0), 5, 0.967),
    ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), 8, 0.990),
    ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), 4, 0.949),
    ((1.0, 1.0, 1.0), (1.5, 1.5, 1.5), 8, 0.994),
]


@pytest.mark.fault("1.1")
@pytest.mark.parametrize(("scan", "network", "radius", "score"), BALLS)
def test_a_perfect_network_has_the_best_possible_dice_score(segmenter, scan, network, radius, score):
    task = Task(
        kind="regions", outputs=(Output(name="ball", value=1, members=(1,)),), paint=(0,), intensity="none", spacing=network
    )
    shape, rng, scores = tuple(int(36 / size) for size in scan), np.random.default_rng(0), []
    affine, back = network_grid(shape, np.diag([*scan, 1.0]), task)
    run = segmenter(task, roi=(64, 32, 32), whole=False).run
    for _ in range(4):
        centre = (np.array(shape) / 2 + rng.uniform(-0.5, 0.5, 3)) * scan

        def logit(grid, matrix, centre=centre):
            positions = np.moveaxis(np.indices(grid), 0, -1) @ matrix[:3, :3].T + matrix[:3, 3]
            return (radius - np.linalg.norm(positions - centre, axis=-1)).astype(np.float32)

        labels, _, _ = run(logit(back.shape, affine)[..., None], back=back)
        scores.append(dice(labels > 0, logit(shape, np.diag([*scan, 1.0])) > 0))
    assert np.mean(scores) >= score - 0.01


@pytest.mark.fault("1.1")
def test_neither_host_nor_device_holds_all_logits_on_the_scans_grid(segmenter, monkeypatch):
    """Measures NumPy's allocations and JAX's live arrays for a CT at 0.75 mm, a network at 1.5 mm and 14 classes."""
    for module in (scan_grid, slab_sum):
        monkeypatch.setattr(module, "PIECE_BYTES", 1 << 20)
    outputs = tuple(Output(name=f"class {n}", value=n) for n in range(14))
    task = Task(kind="classes", outputs=outputs, intensity="none", spacing=(1.5, 1.5, 1.5), roi=(32, 32, 64))
    shape = (128, 96, 96)
    _, back = network_grid(shape, np.diag([0.75, 0.75, 0.75, 1]), task)
    array, peak, scale = np.zeros((*back.shape, 1), np.float32), [0], jnp.arange(14.0)

    def network(x):
        peak[0] = max(peak[0], sum(live.nbytes for live in jax.live_arrays()))
        return x + scale

    run = segmenter(task, network, in_channels=1, overlap=0.5).run
    before = sum(live.nbytes for live in jax.live_arrays())
    tracemalloc.start()
    try:
        labels, _, _ = run(array, back=back)
        host_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert labels.shape == shape and (labels == 13).all()
    logits_bytes = np.prod(shape) * 14 * 4
    assert host_bytes < 2 * labels.nbytes + (2 << 20) < logits_bytes / 10
    slab_bytes = 32 * back.shape[1] * back.shape[2] * 14 * 4
    assert peak[0] - before < 2 * slab_bytes + (8 << 20) < logits_bytes / 3


# Validation


def spheres(shape, affine, count, seed):
    """Returns a scan with a few balls, around which the values decrease with the distance, and the label map of the balls."""
    rng = np.random.default_rng(seed)
    positions = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T
    distance = np.full(shape, np.inf)
    for _ in range(count):
        centre = affine[:3, :3] @ (rng.uniform(0.3, 0.7, 3) * shape)
        distance = np.minimum(distance, np.linalg.norm(positions - centre, axis=-1) - rng.uniform(4, 7))
    return (60 - 10 * np.clip(distance, -4, 5)).astype(np.float32), (distance < 0).astype(np.uint8)


@pytest.mark.fault("1.3")
@pytest.mark.parametrize("intensity", ["none", "zscore"])
@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 2.0)], ids=["as stored", "resampled"])
def test_a_validation_has_the_dice_scores_of_predict_and_evaluate(segmenter, tmp_path, monkeypatch, spacing, intensity):
    # Windows must not be mirrored along the axis of left and right, which only the scan's affine states if the task has no orientation.
    orientation = None if spacing is None and intensity == "zscore" else "RAS"
    names = ("background", "left organ")
    task = Task.classes(2, names=names, intensity=intensity, orientation=orientation, spacing=spacing, roi=ROI)
    cases = []
    for number, affine in enumerate((ANISOTROPIC, oblique(), PERMUTED)):
        image, label = spheres((40, 34, 18), affine, 3, number)
        if intensity == "zscore":
            image[label == 0] *= np.random.default_rng(number).uniform(0, 1, (label == 0).sum()) > 0.2
        cases.append(save(tmp_path, image, affine, label, f"case{number}"))
    threshold = 55 if intensity == "none" else 0.5

    def network(x):
        ramp = 1 + jnp.linspace(-0.2, 0.2, x.shape[1])[None, :, None, None, None]  # so that a mirrored window has other logits
        return jnp.concatenate([jnp.zeros_like(x), x - threshold * ramp], -1)

    crop = mirror = intensity == "zscore"
    options = Validation(overlap=0.25, mirror=mirror)
    assert predict_options(options, task, "float32") == " --crop" * crop + " --overlap 0.25" + " --mirror" * mirror
    predict = segmenter(task, network, in_channels=1, crop=crop, overlap=0.25, mirror=mirror)
    model = SimpleNamespace(config=SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12))
    model.function = network
    monkeypatch.setattr("swinunetr_jax.training.validation.build", lambda config, weights: model)
    prepared = prepare_training_cases(cases, task, tmp_path / "cache", in_channels=1)
    scores = validate(model.config, {}, prepared, task, options, lambda done, total: None)
    paths = {}
    for case in cases:
        result = predict.segment(case)
        paths[case.name] = write_volume(tmp_path / f"out_{case.name}.nii.gz", result.labels, result.scan)
    evaluation = evaluate(paths, References({case.name: Reference(case.label, case.images) for case in cases}), task)
    for score in scores.cases:
        assert 0.1 < score.dice["left organ"] < 1
        assert score.dice["left organ"] == pytest.approx(
            evaluation.scores[score.case.name]["left organ"]["dice_brats"], abs=1e-12
        )
    plots.write_comparison(tmp_path / "validation.png", scores.first, task)
    grid = ScanGrid.of(prepared[0], task)
    assert grid.image(prepared[0]).shape == grid.reference(prepared[0]).shape == scores.first[0].prediction.shape
    if spacing is not None:
        assert grid.shape == (40, 34, 18)
        nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.uint8), np.eye(4)), prepared[0].sources[-1])
        with refused("case0_label.nii.gz", "restore the file"):
            grid.reference(prepared[0])


def test_a_scan_that_only_needs_reorientation_is_not_interpolated(segmenter, tmp_path):
    task = task_of(REGIONS, orientation="RAS", spacing=(0.8, 0.8, 3.0004))
    case = save(tmp_path, smooth((34, 30, 12), 2), ANISOTROPIC)
    assert isinstance(read_case(case, task, 2).back, InverseReorient)
    result = segmenter(task).segment(case)
    labels, _, ties = expected(nib.load(case.images[0]).get_fdata(), task)
    np.testing.assert_array_equal(result.labels[~ties], labels[~ties])
