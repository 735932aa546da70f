"""The configuration of a network is inferred from its tensors, and what the tensors do not determine must be given."""

import numpy as np
import pytest
from helpers.weight_states import CONFIG_2D, CONFIG_3D, CONFIGS, assert_same_tensors, config_for, open_refused, random_params

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.windows import relative_index
from swinunetr_jax.weights.infer import infer_config
from swinunetr_jax.weights.load import open_checkpoint
from swinunetr_jax.weights.monai import entries, to_monai
from swinunetr_jax.weights.params import shapes

pytest_plugins = ["helpers.fixtures"]


class ShapesOnly(dict):
    """A state dict whose weights have the correct shapes but need no memory. Its index tables are real."""

    def __init__(self, config: SwinUNETRConfig):
        expected = shapes(config)
        for entry in entries(config):
            if entry.path is None:
                self[entry.name] = relative_index(config.window_size)
            else:
                self[entry.name] = np.broadcast_to(np.float32(0), entry.order.torch_shape(expected[entry.path].shape))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configuration_is_inferred(name):
    config = config_for(name)
    state = ShapesOnly(config)
    fields = {"downsample": "legacy"} | ({"num_groups": config.num_groups} if config.num_groups else {})
    assert infer_config(state, "a.pt", **fields) == config
    if config.spatial_dims == 2:
        del fields["downsample"]
        assert infer_config(state, "a.pt", **fields) == config.replace(downsample="merging")


@pytest.mark.parametrize("ratio", [4.0, 2.0, 1.0, 0.5, 2.6, 1.1, 3.99, 7 / 3, 2 / 3, 0.3, 1.2345])
@pytest.mark.parametrize("width", [12, 24, 48, 60])
def test_the_mlp_ratio_is_inferred_from_all_stages(ratio, width):
    """The first stage is not sufficient: int(12 * 2.6) is 31, but 31 / 12 gives 248 instead of int(96 * 2.6) = 249 in the last stage."""
    widths = [(width * 2**stage, int(width * 2**stage * ratio)) for stage in range(4)]
    inferred = inferred_ratio(widths)
    assert [int(w * inferred) for w, _ in widths] == [hidden for _, hidden in widths]
    if len(repr(ratio)) < 5:
        assert inferred == ratio


def inferred_ratio(widths):
    """Returns the ratio for (width, hidden width) of each stage."""
    tensors = ShapesOnly(CONFIG_2D)
    for stage, (width, hidden) in enumerate(widths):
        tensors[f"swinViT.layers{stage + 1}.0.blocks.0.mlp.linear1.weight"] = np.broadcast_to(np.float32(0), (hidden, width))
    tensors["swinViT.patch_embed.proj.weight"] = np.broadcast_to(np.float32(0), (widths[0][0], 1, 2, 2))
    return infer_config(tensors, "a.pt").mlp_ratio


def test_widths_that_no_mlp_ratio_gives_are_listed(state_file, state_2d):
    state = dict(state_2d)
    state["swinViT.layers3.0.blocks.0.mlp.linear1.weight"] = np.ones((100, 48), np.float32)
    message = open_refused(state_file(state))
    assert "swinViT.layers3.0.blocks.0.mlp.linear1.weight: (100, 48) in the file" in message


@pytest.mark.parametrize(
    "window", [(7, 7, 7), (7, 5, 7), (5, 7, 7), (7, 7, 5), (4, 4, 4), (2, 3, 4), (1, 3, 2), (1, 1, 1), (8, 2, 8)]
)
def test_the_window_is_inferred_unless_several_fit(window):
    config = CONFIG_3D.replace(window_size=window)
    state = ShapesOnly(config)
    if window.count(1) in (0, 3):
        assert infer_config(state, "a.pt", downsample="legacy").window_size == window
    else:  # the tables of a window with one token along an axis do not depend on which axis it is
        with pytest.raises(
            InputError, match=r"the attention window cannot be inferred from the tensors, .*\(1, 3, 2\).*give `window_size`"
        ):
            infer_config(state, "a.pt", downsample="legacy")
    assert infer_config(state, "a.pt", downsample="legacy", window_size=window) == config


def test_a_cubic_window_is_inferred_without_the_index_table(state_file, state_3d):
    state = {name: tensor for name, tensor in state_3d.items() if not name.endswith("relative_position_index")}
    checkpoint = open_checkpoint(state_file(state), downsample="legacy")
    assert checkpoint.config == CONFIG_3D
    assert_same_tensors(checkpoint, state_3d)

    config = CONFIG_3D.replace(window_size=(3, 3, 2))
    state = {name: tensor for name, tensor in ShapesOnly(config).items() if not name.endswith("relative_position_index")}
    with pytest.raises(InputError, match=r"\(2, 3, 3\) or \(3, 2, 3\) or \(3, 3, 2\).*would fit.*give `window_size`"):
        infer_config(state, "a.pt", downsample="legacy")
    assert infer_config(state, "a.pt", downsample="legacy", window_size=(3, 3, 2)) == config


def test_the_index_table_of_another_window_is_refused(state_file, state_3d):
    state = dict(state_3d)
    name = "swinViT.layers2.0.blocks.0.attn.relative_position_index"
    state[name] = state[name].T.copy()
    message = open_refused(state_file(state), downsample="legacy")
    assert f"one name differs:\n  {name}: (27, 27) in the file is not the index table of window (3, 3, 3)" in message
    message = open_refused(state_file(state_3d), downsample="legacy", window_size=(3, 2, 3))
    assert message.count("\n") == 8 and "bias_table: (125, 3) in the file, (75, 3) in the network" in message


def test_the_index_table_of_a_huge_window_is_not_built(state_file, state_3d):
    message = open_refused(state_file(state_3d), downsample="legacy", window_size=10_000)
    assert "(125, 3) in the file, (7998800059999, 3) in the network" in message


def test_downsample_must_be_given(state_file, state_3d):
    message = open_refused(state_file(state_3d))
    assert "does not state the order of neighbours in its patch merging" in message and "give `downsample`" in message
    assert all(f"'{mode}'" in message for mode in ("legacy", "merging", "mergingv2")) and "\n" not in message
    for mode in ("legacy", "merging", "mergingv2"):
        assert open_checkpoint(state_file(state_3d), downsample=mode).config == CONFIG_3D.replace(downsample=mode)


def test_the_number_of_groups_must_be_given(state_file):
    config = CONFIG_2D.replace(norm_name=("group", {"num_groups": 4}))
    path = state_file(to_monai(random_params(config), config))
    message = open_refused(path)
    assert "has a group norm" in message and "give `num_groups` (--num-groups)" in message
    assert open_checkpoint(path, num_groups=4).config == config.replace(downsample="merging")
    assert open_checkpoint(path, norm_name=("group", {"num_groups": 6})).config.num_groups == 6
    message = open_refused(path, num_groups=5)
    assert message == f"{path}: `num_groups` must divide `feature_size` 12, got 5."


def test_a_norm_that_the_file_lacks_is_refused(state_file, state_2d):
    message = open_refused(state_file(state_2d), num_groups=4)
    assert (
        "decoder1.conv_block.norm1.weight: missing in the file, (12,) in the network" in message
        and "adapt" not in message
        and "encoder_only" not in message
    )


@pytest.mark.parametrize("bad", ["downsmaple", "batch_size"])
def test_unknown_fields_are_refused_before_the_file_is_read(tmp_path, bad):
    with pytest.raises(InputError, match=f"unknown option or configuration field {bad}: known fields are attn_drop_rate, "):
        open_checkpoint(tmp_path / "not there", **{bad: 1})


def test_values_out_of_range_are_refused_with_the_file(state_file, state_2d):
    state = state_2d | {"swinViT.patch_embed.proj.weight": np.ones((13, 1, 2, 2), np.float32)}
    message = open_refused(state_file(state))
    assert message.endswith(": `feature_size` must be a multiple of 12, got 13; published models use 12, 24 and 48.")


def test_tensors_with_wrong_or_empty_axes_are_refused(state_file, state_2d):
    for name in (
        "swinViT.layers1.0.blocks.0.attn.relative_position_bias_table",
        "swinViT.layers4.0.blocks.0.mlp.linear1.weight",
        "out.conv.conv.bias",
    ):
        for wrong in (np.float32(1), np.ones((1 << 40, 0), np.float32)):
            assert f"{name} has the shape {wrong.shape}, expected" in open_refused(
                state_file(state_2d | {name: np.asarray(wrong)})
            )


def test_missing_blocks_are_refused(state_file, state_2d):
    state = {name.replace("layers2.0.blocks.0.", "layers2.0.blocks.1."): tensor for name, tensor in state_2d.items()}
    assert "expected the blocks 0, 1, … without a gap in stage 2, got 1." in open_refused(state_file(state))
