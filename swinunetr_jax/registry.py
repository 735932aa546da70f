"""Networks by name, so that training, checkpoints and predictions use a network of another package like Swin UNETR.

A package names its networks in its own pyproject.toml, where each entry refers to a function or a class that creates one:

    [project.entry-points."swinunetr_jax.networks"]
    my_unet = "my_package.networks:UNet"

A checkpoint stores only the name and the configuration of its network. Reading it executes no code of the checkpoint: the name is looked
up among those that `register` was called with and those of installed packages, and any other name is refused.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points

from flax import nnx

from swinunetr_jax.errors import InputError
from swinunetr_jax.model.custom import CustomConfig, CustomNetwork, NetworkFactory, OwnConfig

__all__ = ["CustomConfig", "CustomNetwork", "NetworkFactory", "OwnConfig", "find", "is_installed", "names", "register"]

GROUP = "swinunetr_jax.networks"
SWIN_UNETR = "swin_unetr"  # the name of the network that is used by default; its configuration is a `SwinUNETRConfig`
_NAME = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
_registered: dict[str, CustomNetwork] = {}


def register(
    name: str, factory: Callable[..., nnx.Module] | CustomNetwork, config_class: type[OwnConfig] | None = None
) -> CustomNetwork:
    """Registers a network in this process, and returns it.

    Args:
        name: the name, of letters, digits, ".", "_" and "-".
        factory: (in_channels, out_channels, *, rngs) -> `flax.nnx.Module` or, if the network has a configuration of its own,
            (config, *, rngs) -> `flax.nnx.Module`; or a CustomNetwork, which is registered under this name.
        config_class: the class of this configuration, see `OwnConfig`; by default the `config_class` of the factory.

    Raises:
        InputError: the name cannot be used, or another network has it.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == SWIN_UNETR:
        raise InputError(f'a network cannot have the name {name!r}: choose another one of letters, digits, ".", "_" and "-".')
    network = _named(factory, name)
    if config_class is not None:
        network = replace(network, config_class=config_class)
    earlier = _registered.get(name)
    if earlier is not None and _definition(earlier) != _definition(network):  # a recipe may be executed several times
        raise InputError(f"the name {name} is already registered for {'.'.join(_definition(earlier))}: choose another name.")
    _registered[name] = network
    return network


def names() -> tuple[str, ...]:
    """Returns the names of all networks: Swin UNETR's, those that `register` was called with, and those of installed packages."""
    return (SWIN_UNETR, *sorted({*_registered, *(entry.name for entry in entry_points(group=GROUP))} - {SWIN_UNETR}))


def is_installed(name: str) -> bool:
    """Returns whether an installed package has a network of this name."""
    return bool(_installed(name))


def find(name: str) -> CustomNetwork:
    """Returns the network that this process or an installed package has registered under a name.

    Raises:
        InputError: there is none, several packages have one, or the package cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    entries = _installed(name)
    if not entries:
        raise InputError(
            f"the network is {name}, which is not a Swin UNETR and not registered here (registered: {', '.join(names())}): install the "
            f"package that has it as an entry point `{GROUP}`, call `swinunetr_jax.registry.register` in Python, or name the recipe that "
            "defines it, for `swinunetr predict` as --recipe FILE."
        )
    if len(entries) > 1:
        packages = ", ".join(sorted(entry.dist.name if entry.dist else entry.value for entry in entries))
        raise InputError(f"several installed packages have a network {name} ({packages}): uninstall all but one of them.")
    entry = entries[0]
    try:
        return _named(entry.load(), name)
    except Exception as error:  # the package's code may raise anything
        package = entry.dist.name if entry.dist else entry.module
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"the network {name} of the package {package} cannot be imported ({reason}): repair the package."
        ) from error


def _installed(name: str) -> list[EntryPoint]:
    """Returns the entry points of a name, without importing anything."""
    return [] if name == SWIN_UNETR else list(entry_points(group=GROUP, name=name))


def _named(network: Callable[..., nnx.Module] | CustomNetwork, name: str) -> CustomNetwork:
    """Returns a network with the name under which it is registered, because a checkpoint stores this name and it is looked up later."""
    return replace(CustomNetwork.of(network, name), name=name)


def _definition(network: CustomNetwork) -> tuple[str, str]:
    """Returns the module and the name of a network's factory, which are the same if its file is executed again."""
    return network.factory.__module__, getattr(network.factory, "__qualname__", repr(network.factory))
