"""Our outputs and intermediates equal those of MONAI that tools/make_goldens.py stored, so this test needs no torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from swinunetr_jax import SwinUNETRConfig, open_checkpoint
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.params import flatten
from swinunetr_jax.weights.torch_file import write_torch_file
from tools import golden_weights

FILES = sorted((Path(__file__).parent / "goldens").glob("*.npz"))
TOLERANCE = 1e-4  # relative to the largest magnitude in the array


LONG = (
    "hyena",
    "legacy_v2",
    "merging",
    "mergingv2",
    "options",
    "v2",
)  # their options are also tested by other files and by test_parity.py


NOT_IN_HYENA_TENSORS = ("hyena_fft_padding", "hyena_grid_type", "hyena_l_cache", "hyena_mask_max_attenuation")


@pytest.fixture(
    scope="module",
    params=[pytest.param(path, id=path.stem, marks=[pytest.mark.long] if path.stem in LONG else []) for path in FILES],
)
def golden(request: pytest.FixtureRequest) -> dict[str, Any]:
    with np.load(request.param) as content:
        arrays = dict(content)
    return {"file": request.param.stem, **arrays, **json.loads(str(arrays.pop("about")))}


@pytest.fixture(scope="module")
def outputs(
    golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, run_forward: Callable[..., Any]
) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns our network with the weights of a stored case, read from a file, and its intermediates and logits by name."""
    weights = golden_weights.state({name: tuple(shape) for name, shape in golden["state"].items()}, golden["seed"])
    assert golden_weights.digest(weights) == golden["weights"], "the seed gives other weights than when the file was written"
    config = SwinUNETRConfig(**golden["config"])
    path = tmp_path_factory.mktemp("golden") / "network.pt"
    write_torch_file(path, weights)
    fields = {"downsample": config.downsample, "normalize": config.normalize, "window_size": config.window_size}
    fields |= {name: value for name, value in golden["config"].items() if name in NOT_IN_HYENA_TENSORS}
    if config.use_hyena:
        fields.setdefault("hyena_fft_padding", config.hyena_fft_padding)
    if config.num_groups is not None:
        fields["num_groups"] = config.num_groups
    checkpoint = open_checkpoint(path, **fields)
    assert checkpoint.config == config
    model = checkpoint.model()
    # the long tests compile as users do
    optimize = golden["file"] in LONG
    return model, run_forward(model, golden_weights.volume(tuple(golden["shape"]), golden["seed"]), optimize=optimize)


def test_all_cases_exist():
    assert [path.stem for path in FILES] == [
        "2d",
        "batch",
        "hyena",
        "hyena_2d",
        "legacy",
        "legacy_v2",
        "merging",
        "mergingv2",
        "options",
        "v2",
    ]
    assert all(path.stat().st_size < 100_000 for path in FILES)


def test_state_dict_has_monais_names_and_shapes(golden, outputs):
    model, _ = outputs
    ours = {name: list(value.shape) for name, value in to_monai(flatten(model), model.config).items()}
    assert ours == golden["state"]


def test_logits_equal_those_of_monai(golden, outputs):
    logits = outputs[1]["logits"]
    mean, std, top = golden["logits_statistics"]
    assert np.abs(golden_weights.sample(logits, golden["logits"].size) - golden["logits"]).max() <= TOLERANCE * top
    np.testing.assert_allclose(golden_weights.statistics(logits), (mean, std, top), rtol=0, atol=TOLERANCE * top)


def test_every_intermediate_equals_that_of_monai(golden, outputs):
    intermediates = {name: value for name, value in outputs[1].items() if name != "logits"}
    assert set(intermediates) == set(golden["names"])
    for name, samples, statistics in zip(golden["names"], golden["samples"], golden["statistics"]):
        size, limit = min(samples.size, intermediates[name].size), TOLERANCE * statistics[2]
        error = np.abs(golden_weights.sample(intermediates[name], samples.size) - samples[:size]).max()
        assert error <= limit, f"{name}: {error:.2e} off, {limit:.2e} allowed"
        np.testing.assert_allclose(golden_weights.statistics(intermediates[name]), statistics, rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize(
    "golden", [FILES[0], pytest.param(FILES[-1], marks=pytest.mark.long)], ids=lambda path: path.stem, indirect=True
)
def test_logits_of_the_reference_implementations_equal_those_of_monai(golden, outputs, run_forward, fresh_traces, monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
    intermediates = run_forward(outputs[0], golden_weights.volume(tuple(golden["shape"]), golden["seed"]))
    test_logits_equal_those_of_monai(golden, (None, intermediates))
