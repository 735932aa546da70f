"""Finds the network in the content of a weight file, whatever else a trainer saved in it.

Trainers save state dicts under many names (`state_dict`, `model`, `network_weights`, `ema`, `checkpoint.state_dict`, …) and add
prefixes to the names of the tensors. Therefore no name of a container is assumed: every dict of tensors in a file is searched for
networks, which are recognised by the names of their tensors. If a file contains several networks, the caller chooses one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.foreign_names import ANCHOR, is_reconstruction, is_within_network, prefix_of, to_monai_name
from swinunetr_jax.weights.weight_file import printable

Tensors = dict[str, np.ndarray]
TOP = "."  # the key of a network whose tensors are on the top level of the file


@dataclass(frozen=True)
class Source:
    """The tensors of a network in a file.

    Attributes:
        path: the file, for messages.
        tensors: the network's tensors, with MONAI's names and order of axes, or with this project's if `is_ours`.
        ignored: the file's names of tensors that are not part of the network.
        is_ours: whether the tensors come from a checkpoint folder of this project.
        doubtful: those of `ignored` that do not usually accompany networks, so that a warning should name them.
    """

    path: str
    tensors: Tensors
    ignored: tuple[str, ...] = ()
    is_ours: bool = False
    doubtful: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Network:
    """A network that was found in a file.

    Attributes:
        key: the dotted path of the entry that contains it, followed by the prefix of its names.
        tensors: its tensors by MONAI's names.
        known: names of accompanying tensors that are known not to belong to any network.
        unknown: names of other accompanying tensors that are not part of the network.
        tensor_paths: the dotted paths in the file of all of these tensors.
    """

    key: str
    tensors: Tensors
    known: tuple[str, ...]
    unknown: tuple[str, ...]
    tensor_paths: frozenset[str]

    @property
    def has_decoder(self) -> bool:
        return any(name.startswith("decoder") for name in self.tensors)


def find_network(content: object, path: str, *, key: str | None = None, encoder_only: bool = False) -> Source:
    """Returns the network in the content of a file, with MONAI's names.

    Args:
        content: nested dicts and lists with arrays.
        path: the file, for messages.
        key: the dotted path of the entry that contains the network, such as "model_ema" or "checkpoint.state_dict".
        encoder_only: whether only the Swin encoder is needed. Otherwise networks with a decoder take precedence over those without.

    Raises:
        InputError: there is no network, or there are several different ones and `key` does not choose one, or two names of tensors
            become the same name.
    """
    states = list(_state_dicts(content, ""))
    tensor_paths = [_join(dict_path, name) for dict_path, state in states for name in state]
    if not tensor_paths:
        raise InputError(
            f"{path} holds no state dict, expected a dict of named tensors, alone or within other dicts: check which file was given."
        )
    networks = [network for dict_path, state in states for network in _networks(path, dict_path, state)]
    with_anchor = [network for network in networks if ANCHOR in network.tensors]
    if with_anchor:
        network = _choose(path, with_anchor, key, encoder_only)
    elif networks and key is None:
        network = max(networks, key=lambda network: len(network.tensors))  # the load reports what is missing
    else:
        names = sorted(printable(tensor_path) for tensor_path in tensor_paths)
        listed = f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        raise InputError(
            f"{path} is not a Swin UNETR checkpoint, because no name in it is that of a parameter of the network: expected names such as "
            f"{ANCHOR}, got {listed}; check which file was given."
        )
    others = tuple(tensor_path for tensor_path in tensor_paths if tensor_path not in network.tensor_paths)
    doubtful = network.unknown + others
    return Source(path, network.tensors, network.known + doubtful, doubtful=doubtful)


def _state_dicts(content: object, dict_path: str) -> Iterator[tuple[str, Tensors]]:
    """Yields the arrays of every dict that directly contains arrays, with the dict's dotted path.

    Optimizers are skipped, because their moments may have the names of the network's tensors.
    """
    if isinstance(content, list | tuple):
        content = {str(index): value for index, value in enumerate(content)}
    if not isinstance(content, Mapping):
        return
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, np.ndarray)}
    if state:
        yield dict_path, state
    for name, value in content.items():
        if isinstance(value, Mapping | list | tuple) and not str(name).lower().startswith("optim"):
            yield from _state_dicts(value, _join(dict_path, str(name)))


def _networks(path: str, dict_path: str, state: Tensors) -> list[_Network]:
    """Returns the networks among the tensors of one dict, one for each prefix. Some may be incomplete and lack the anchor."""
    prefixes = {name: prefix_of(name) for name in state}
    names: dict[str, dict[str, str]] = {}  # for each prefix, the names within the network and those in the dict
    for name, prefix in prefixes.items():
        if prefix is not None:
            names.setdefault(prefix, {})[name.removeprefix(prefix)] = name
    anchored = [prefix for prefix, group in names.items() if any(to_monai_name(name) == ANCHOR for name in group)]
    for name, prefix in prefixes.items():
        enclosing = [other for other in anchored if name.startswith(other)]
        if prefix not in anchored and enclosing:
            # The name is next to a network's own names. The longest prefix is that of the closest network.
            nearest = max(enclosing, key=len)
            names[nearest][name.removeprefix(nearest)] = name
            if prefix is not None:
                del names[prefix][name.removeprefix(prefix)]
    return [
        _network(path, _join(dict_path, prefix.rstrip(".")), dict_path, group, state) for prefix, group in names.items() if group
    ]


def _network(path: str, key: str, dict_path: str, names: Mapping[str, str], state: Tensors) -> _Network:
    """Returns the network with one prefix. `names` maps the names within the network to those in the dict `state`."""
    reconstruction = is_reconstruction(names)
    tensors: Tensors = {}
    known, unknown = [], []
    for name, original in names.items():
        tensor = state[original]
        monai_name = "" if reconstruction and name.startswith("out.") else to_monai_name(name)
        if not monai_name:
            known.append(name)
        elif not is_within_network(monai_name) and tensor.ndim <= 1:
            unknown.append(name)  # such as a counter; a layer has a weight with at least two axes
        elif monai_name in tensors:
            raise InputError(
                f"{path} holds {printable(monai_name)!r} twice, under names of two naming schemes, expected it once: save only one of "
                "the two."
            )
        else:
            tensors[monai_name] = tensor
    tensor_paths = frozenset(_join(dict_path, original) for original in names.values())
    return _Network(key or TOP, tensors, tuple(known), tuple(unknown), tensor_paths)


def _choose(path: str, networks: list[_Network], key: str | None, encoder_only: bool) -> _Network:
    """Returns the only network that `key` and `encoder_only` allow. Raises InputError if there is none or several different ones."""
    keys = ", ".join(f"{printable(network.key)} ({len(network.tensors)} tensors)" for network in networks[:12])
    keys += f" and {len(networks) - 12} more" if len(networks) > 12 else ""
    fitting = networks
    if key is not None:
        fitting = [n for n in networks if n.key == key or (key != TOP and n.key.startswith(f"{key}."))]
        if not fitting:
            raise InputError(f"{path} has no network under {printable(key)!r}, expected as `key` (--key) one of: {keys}.")
    if not encoder_only and any(network.has_decoder for network in fitting):
        fitting = [network for network in fitting if network.has_decoder]
    if len(fitting) > 1 and not all(_equal(network.tensors, fitting[0].tensors) for network in fitting[1:]):
        raise InputError(f"{path} holds several networks, expected one: choose with `key` (--key) one of: {keys}.")
    return fitting[0]


def _equal(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def _join(dict_path: str, name: str) -> str:
    return f"{dict_path}.{name}" if dict_path and name else dict_path or name
