"""The layer-wise decay of the learning rate."""

from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from swinunetr_jax import InputError, SwinUNETRConfig
from swinunetr_jax.parameters import layer_scale
from swinunetr_jax.training import Optim, Recipe
from swinunetr_jax.training.optim import learning_rate, optimizer
from swinunetr_jax.training.options import Options
from swinunetr_jax.weights.params import shapes

# The names are the same in 3-D, which takes longer to trace.
CONFIG = SwinUNETRConfig(in_channels=2, out_channels=3, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2, window_size=(7, 7))
# For each group, the parts of a Swin UNETR.
GROUPS = (
    {"swin.patch_embed", "encoder1", "encoder2"},
    {"swin.stages.0", "swin.convs.0", "encoder3"},
    {"swin.stages.1", "swin.convs.1", "encoder4"},
    {"swin.stages.2", "swin.convs.2"},
    {"swin.stages.3", "swin.convs.3", "encoder10"},
    {"decoder1", "decoder2", "decoder3", "decoder4", "decoder5", "out"},
)


@pytest.mark.parametrize("use_v2", [False, True])
def test_every_weight_of_a_swin_unetr_has_a_group(use_v2):
    parts = {part: group for group, names in enumerate(GROUPS) for part in names}
    seen = Counter()
    for name in shapes(CONFIG.replace(use_v2=use_v2, norm_name="batch", patch_norm=True)):
        (part,) = [part for part in parts if name.startswith(f"{part}.")]
        assert layer_scale(name, 0.5) == 0.5 ** (5 - parts[part])
        seen[part] += 1
    assert set(seen) == {part for part in parts if use_v2 or "convs" not in part}


def test_names_outside_of_the_network():
    assert layer_scale("objective.heads.0.kernel", 0.5) == 1
    with pytest.raises(InputError, match="no weight layers"):
        layer_scale("layers.0.kernel", 0.5)


def test_updates_and_weight_decay_are_scaled_by_layer():
    weights = {"swin.patch_embed.proj.bias": 2.0, "swin.stages.1.merge.norm.bias": -1.0, "out.bias": 3.0}
    weights = {name: np.full(2, value, np.float32) for name, value in weights.items()}
    gradients = {name: value * np.float32([0.1, -4]) for name, value in weights.items()}
    optim = Optim(lr=0.1, weight_decay=0.5, clip=1.0)

    def updates(optim: Optim) -> dict[str, np.ndarray]:
        transformation = optimizer(optim, 10)
        return jax.jit(transformation.update)(gradients, transformation.init(weights), weights)[0]

    plain, scaled = updates(optim), updates(replace(optim, layer_decay=0.5))
    for name, factor in zip(weights, (0.5**5, 0.5**3, 1)):
        np.testing.assert_allclose(scaled[name], factor * plain[name], rtol=1e-6)
    np.testing.assert_array_equal(scaled["out.bias"], plain["out.bias"])


def test_weights_that_an_objective_does_not_train_stay_as_they_are():
    weights = {"swin.stages.3.merge.norm.bias": np.ones(2, np.float32), "out.bias": np.ones(2, np.float32)}
    chosen = optimizer(Optim(lr=0.1, layer_decay=0.5), 10)
    parts = {"swin.stages.3.merge.norm.bias": "trained", "out.bias": "frozen"}
    transformation = optax.partition({"trained": chosen, "frozen": optax.set_to_zero()}, parts)
    updates = transformation.update(weights, transformation.init(weights), weights)[0]
    np.testing.assert_array_equal(updates["out.bias"], np.zeros(2))
    alone = {name: value for name, value in weights.items() if name != "out.bias"}
    np.testing.assert_allclose(updates[next(iter(alone))], chosen.update(alone, chosen.init(alone), alone)[0][next(iter(alone))])


def test_the_state_is_that_of_adamw():
    """Without the option the transformation is the same; with it the state has the same arrays."""
    weights = {"out.bias": np.zeros(2, np.float32)}
    adamw = optax.chain(optax.adamw(learning_rate(Optim(), 10), 0.9, 0.999, eps=1e-8, weight_decay=1e-5))
    expected = adamw.init(weights)
    states = [optimizer(optim, 10).init(weights) for optim in (Optim(), Optim(layer_decay=0.5))]
    assert jax.tree.structure(states[0]) == jax.tree.structure(expected)
    assert [leaf.shape for leaf in jax.tree.leaves(states[1])] == [leaf.shape for leaf in jax.tree.leaves(expected)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": lambda steps: None}, "gives a function for `optimizer`: leave one of them out"),
        ({"network": lambda *_, **__: None}, "gives a function for `network`: leave one of them out"),
        ({"optim": Optim(layer_decay=0.0)}, "`optim.layer_decay` must be above 0 and at most 1, got 0.0"),
        ({"optim": Optim(layer_decay=1.1)}, "`optim.layer_decay` must be above 0 and at most 1, got 1.1"),
    ],
)
def test_it_is_refused_where_it_has_no_meaning(fields, message):
    recipe = Recipe(**{"kind": "labels", "optim": Optim(layer_decay=0.75)} | fields)
    with pytest.raises(InputError, match=message):
        recipe.check()


def test_it_is_stored_and_earlier_runs_have_none():
    options = Options(kind="labels", optim=Optim(layer_decay=0.75))
    stored = options.to_dict()
    assert Options.from_dict(stored) == options
    del stored["optim"]["layer_decay"]
    assert Options.from_dict(stored).optim.layer_decay is None
