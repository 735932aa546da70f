"""Replaces the plug-ins of jax2onnx (version 0.17.1) for operations that it does not convert, or not precisely, during a conversion.

jax2onnx keeps one plug-in for each primitive of JAX in a registry. Each plug-in here takes some equations of its primitive and passes all
others to the one that it replaces.
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any  # jax2onnx is no dependency, so its types are unknown here

from swinunetr_jax.export import onnx_conv, onnx_sum

OURS = (onnx_conv, onnx_sum)


@contextlib.contextmanager
def our_plugins() -> Iterator[None]:
    """Lets jax2onnx convert convolutions of three axes, and sums over several axes precisely, in this block."""
    plugins = importlib.import_module("jax2onnx.plugins.plugin_system")
    plugins.import_all_plugins()  # which would otherwise replace the plug-ins below later
    replaced = {module.PRIMITIVE: plugins.PLUGIN_REGISTRY[module.PRIMITIVE] for module in OURS}
    for module in OURS:
        plugins.register_primitive(jaxpr_primitive=module.PRIMITIVE)(_plugin(plugins, module, replaced[module.PRIMITIVE]))
    try:
        yield
    finally:
        plugins.PLUGIN_REGISTRY.update(replaced)


def _plugin(plugins: Any, module: Any, other: Any) -> type:
    """Returns the class of a plug-in, which uses a module here for the equations that are its own, and the other plug-in for the rest."""

    class Plugin(plugins.PrimitiveLeafPlugin):
        def lower(self, ctx: Any, eqn: Any) -> None:
            if module.is_ours(eqn):
                module.lower(ctx, eqn)
            else:
                other.lower(ctx, eqn)

    return Plugin
