"""Grad-CAM equals a literal computation with torch's gradients of MONAI's network, which has the same weights. Needs torch and MONAI."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swinunetr_jax import InputError, SwinUNETR, SwinUNETRConfig, Task, grad_cam
from swinunetr_jax.saliency import check_explainable, resized
from tools import golden_weights

FLOAT64 = 1e-10
NETWORKS = {  # the fields of the network, and the grid of its input
    "2-D, classes": ({"in_channels": 1, "out_channels": 3, "spatial_dims": 2, "use_v2": True}, (64, 32)),
    "3-D, regions": ({"in_channels": 4, "out_channels": 3}, (64, 32, 32)),
}
KINDS = {2: "classes", 3: "regions"}
SMALL = {"feature_size": 12, "depths": (1, 1, 1, 1), "window_size": 4}


@pytest.fixture(scope="module")
def networks(request, monai_pair):
    """Returns both networks in float64, and an input of two samples; a batch shows whether their maps are independent."""
    pytest.importorskip("monai")
    fields, grid = NETWORKS[request.param]
    pair = monai_pair(**SMALL, **fields)
    x = golden_weights.volume((1, *grid, fields["in_channels"]), seed=1)
    with jax.enable_x64(True):
        yield pair.ours(dtype="float64", param_dtype="float64"), pair.theirs.double(), np.concatenate([x, x[:, ::-1]])


def their_pass(net, x, output, kind):
    """Returns MONAI's voxels that are assigned to an output, the activations and their gradients by our names, all channels last."""
    import torch

    from tools import reference

    kept = {}
    for module, name, first in reference.points(net):
        module.register_forward_hook(lambda module, inputs, result, name=name, first=first: kept.update({name: (result, first)}))
    hidden = net.swinViT.register_forward_hook(
        lambda module, inputs, results: kept.update({f"hidden{index}": (result, True) for index, result in enumerate(results)})
    )
    try:
        logits = net(reference.channels_first(x, torch.float64))
    finally:
        hidden.remove()
        for module, *_ in reference.points(net):
            module._forward_hooks.clear()
    mask = logits.argmax(1) == output if kind == "classes" else logits[:, output] > 0
    gradients = torch.autograd.grad(logits[:, output][mask].sum(), [result for result, _ in kept.values()])

    def last(array, first):
        return np.moveaxis(array.detach().numpy(), 1, -1) if first else array.detach().numpy()

    names = dict(zip(kept, gradients))
    return (
        mask.numpy(),
        {name: last(result, first) for name, (result, first) in kept.items()},
        {name: last(gradient, kept[name][1]) for name, gradient in names.items()},
    )


def literal_map(activation, gradient):
    maps = [np.maximum((a * g.mean(axis=tuple(range(g.ndim - 1)))).sum(-1), 0) for a, g in zip(activation, gradient)]
    return np.stack(maps)


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def gradients_of_all(model, x, mask, names):
    """Returns the gradient of the score of output 1 with respect to each intermediate, and the intermediates, by name."""

    def score(perturbations):
        logits, intermediates = model.forward(x, perturbations=perturbations)
        return jnp.sum(logits[..., 1] * mask), intermediates

    shapes = jax.eval_shape(lambda: model.forward(x)[1])
    return jax.grad(score, has_aux=True)({name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in names})


@pytest.mark.parametrize("networks", ["2-D, classes", pytest.param("3-D, regions", marks=pytest.mark.long)], indirect=True)
def test_the_gradient_of_every_intermediate_equals_that_of_torch(networks):
    model, net, x = networks
    mask, activations, gradients = their_pass(net, x, 1, KINDS[model.config.spatial_dims])
    run = jax.jit(functools.partial(gradients_of_all, names=tuple(activations)))
    ours, intermediates = run(model, x, mask)
    assert set(ours) == set(intermediates)  # every name of `forward`
    assert {"swin.patch_embed", "swin.stage3", "swin.stage2.block0", "hidden3", "encoder10", "decoder4", "logits"} <= set(ours)
    assert ("swin.stage1.conv" in ours) == model.config.use_v2
    for name, gradient in gradients.items():
        assert error(np.asarray(ours[name]), gradient) <= FLOAT64, name


@pytest.mark.parametrize(
    ("networks", "layer"),
    [("2-D, classes", "swin.stage2"), ("3-D, regions", "decoder4")],
    indirect=["networks"],
)
@pytest.mark.long
def test_maps_equal_those_of_torch(networks, layer):
    model, net, x = networks
    mask, activations, gradients = their_pass(net, x, 1, KINDS[model.config.spatial_dims])
    assert 0 < mask.sum() < mask.size
    expected = literal_map(activations[layer], gradients[layer])
    assert expected.max() > 0
    cam = jax.jit(functools.partial(grad_cam, output=1, layer=layer))(model, x)
    assert error(np.asarray(cam), expected) <= FLOAT64


@pytest.mark.parametrize("networks", ["2-D, classes"], indirect=True)
def test_a_mask_replaces_the_assigned_voxels_and_maps_are_resized(networks):
    model, net, x = networks
    import torch

    from tools import reference

    mask = np.zeros(x.shape[:-1])
    mask[:, 8:20, 4:9] = 1
    kept = []
    handle = net.encoder10.register_forward_hook(lambda module, inputs, result: kept.append(result))
    logits = net(reference.channels_first(x, torch.float64))
    handle.remove()
    (gradient,) = torch.autograd.grad((logits[:, 2] * torch.as_tensor(mask)).sum(), kept)
    weights = gradient.mean((2, 3), keepdim=True)
    expected = torch.nn.functional.interpolate(
        torch.relu((kept[0] * weights).sum(1, keepdim=True)), size=(64, 32), mode="bilinear", align_corners=False
    )[:, 0]
    task = Task.classes(3, ("background", "one", "two"))
    cam = jax.jit(functools.partial(grad_cam, output="two", layer="encoder10", task=task, resize=True))(model, x, voxels=mask)
    assert cam.shape == (2, 64, 32)
    assert error(np.asarray(cam), expected.detach().numpy()) <= FLOAT64


def test_a_map_without_voxels_is_zero_and_mistakes_are_named():
    config = SwinUNETRConfig(in_channels=1, out_channels=2, spatial_dims=2, **SMALL)
    model = nnx.eval_shape(lambda: SwinUNETR(config, rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((1, 64, 32, 1), jnp.float32)

    def refused(text, **arguments):
        with pytest.raises(InputError, match=text):
            jax.eval_shape(functools.partial(grad_cam, **{"output": 1, **arguments}), model, x)

    refused(r"no output 2: choose one of background \(0\), class 1 \(1\)", output=2)
    refused("no output 'liver'", output="liver")
    refused(r"no intermediate 'decoder9': choose one of .*decoder4", layer="decoder9")
    refused(r"`voxels` has shape \(3, 3\), expected \(1, 64, 32\) or \(64, 32\)", voxels=jnp.zeros((3, 3)))
    refused("pre-trained without labels", task=Task.images(("a", "b")))
    with pytest.raises(InputError, match="a Linear has no method `forward` with the argument `perturbations`"):
        check_explainable(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"perturbation of decoder4 has shape \(1, 8, 4, 1\), expected .* \(1, 8, 4, 48\)"):
        jax.eval_shape(lambda model, x: model.forward(x, perturbations={"decoder4": jnp.zeros((1, 8, 4, 1))}), model, x)
    with pytest.raises(InputError, match="no intermediate 'decoder'"):
        jax.eval_shape(lambda model, x: model.forward(x, perturbations={"decoder": jnp.zeros(1)}), model, x)


def test_the_centre_of_a_coarse_voxel_is_that_of_the_voxels_that_it_covers():
    """Two voxels of a coarse grid cover eight fine ones, so that their centres are at 1.5 and 5.5."""
    fine = resized(jnp.asarray([[0.0, 4.0]]), (8,))
    np.testing.assert_allclose(fine, [[0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4]])
