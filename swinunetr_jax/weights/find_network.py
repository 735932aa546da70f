"""The network in the content of a weight file, whatever a trainer saved around and beside it.

Trainers save state dicts under many names (`state_dict`, `model`, `network_weights`, `ema`, `checkpoint.state_dict`, …) and put
prefixes before the names in them. So nothing is looked up by name: every dict of tensors in a file is searched for networks, which
their tensors' names tell. Where a file holds several networks, the caller has to say which one is meant.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.foreign_names import ANCHOR, is_of_network, is_reconstruction, prefix_of, to_monai_name
from swinunetr_jax.weights.weight_file import shown

Tensors = dict[str, np.ndarray]
TOP = "."  # the key of a network whose tensors stand directly in the file


@dataclass(frozen=True)
class Source:
    """A file's tensors by name, and the names of those that are not part of the network.

    Attributes:
        path: the file, for messages.
        tensors: MONAI's names and axes, or ours where `is_ours`.
        ignored: names in the file.
        is_ours: whether the tensors are those of our own checkpoint folder.
        doubtful: the names among `ignored` that belong to no known companion of a network.
    """

    path: str
    tensors: Tensors
    ignored: tuple[str, ...] = ()
    is_ours: bool = False
    doubtful: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Network:
    """A network in a file.

    Attributes:
        key: the entry that holds it, and the prefix of its names.
        tensors: by MONAI's names.
        known, unknown: names of tensors that stand among its own and are no part of it.
        places: the full names in the file of all of these.
    """

    key: str
    tensors: Tensors
    known: tuple[str, ...]
    unknown: tuple[str, ...]
    places: frozenset[str]

    @property
    def is_whole(self) -> bool:
        return any(name.startswith("decoder") for name in self.tensors)


def find_network(content: object, path: str, *, key: str | None = None, encoder_only: bool = False) -> Source:
    """Finds the network in a file's content and brings its names to MONAI's.

    Args:
        content: nested dicts and lists with arrays.
        path: the file, for messages.
        key: the entry of the file that holds the network, as a dotted path, such as "model_ema" or "checkpoint.state_dict".
        encoder_only: whether a Swin encoder alone is wanted, so that one is as good as a whole network.

    Raises:
        InputError: there is no network, or several of which none was chosen, or two names in it become the same.
    """
    states = list(_state_dicts(content, ""))
    places = [_join(where, name) for where, state in states for name in state]
    if not places:
        raise InputError(
            f"{path} holds no state dict, expected tensors by name, or a dict of them under a name: check which file was given."
        )
    found = [network for where, state in states for network in _networks(path, where, state)]
    complete = [network for network in found if ANCHOR in network.tensors]
    if complete:
        network = _choose(path, complete, key, encoder_only)
    elif found and key is None:
        network = max(found, key=lambda network: len(network.tensors))  # loading says what it lacks
    else:
        names = sorted(shown(place) for place in places)
        some = f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        raise InputError(
            f"{path} is not a Swin UNETR checkpoint, none of its {len(names)} names fits: expected names such as {ANCHOR}, got {some}; "
            "check which file was given."
        )
    others = tuple(place for place in places if place not in network.places)
    doubtful = network.unknown + others
    return Source(path, network.tensors, network.known + doubtful, doubtful=doubtful)


def _state_dicts(content: object, where: str) -> Iterator[tuple[str, Tensors]]:
    """Every dict with arrays in it, with its dotted path; optimizers are left out, whose moments may bear the network's names."""
    if isinstance(content, list | tuple):
        content = {str(index): value for index, value in enumerate(content)}
    if not isinstance(content, Mapping):
        return
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, np.ndarray)}
    if state:
        yield where, state
    for name, value in content.items():
        if isinstance(value, Mapping | list | tuple) and not str(name).lower().startswith("optim"):
            yield from _state_dicts(value, _join(where, str(name)))


def _networks(path: str, where: str, state: Tensors) -> list[_Network]:
    """The networks among the tensors of one dict, which prefixes tell apart; those without the anchor, too."""
    prefixes = {name: prefix_of(name) for name in state}
    names: dict[str, dict[str, str]] = {}  # by prefix: from the name within the network to the one in the dict
    for name, prefix in prefixes.items():
        if prefix is not None:
            names.setdefault(prefix, {})[name.removeprefix(prefix)] = name
    anchored = [prefix for prefix, group in names.items() if any(to_monai_name(name) == ANCHOR for name in group)]
    for name, prefix in prefixes.items():
        around = [other for other in anchored if name.startswith(other)]
        if prefix not in anchored and around:  # beside a network's own parts: the longest prefix is the nearest network's
            nearest = max(around, key=len)
            names[nearest][name.removeprefix(nearest)] = name
            if prefix is not None:
                del names[prefix][name.removeprefix(prefix)]
    return [_network(path, _join(where, prefix.rstrip(".")), where, group, state) for prefix, group in names.items() if group]


def _network(path: str, key: str, where: str, names: Mapping[str, str], state: Tensors) -> _Network:
    """The network of one prefix; `names` are those in it and in the dict."""
    reconstruction = is_reconstruction(names)
    tensors: Tensors = {}
    known, unknown = [], []
    for name, original in names.items():
        tensor = state[original]
        new = "" if reconstruction and name.startswith("out.") else to_monai_name(name)
        if not new:
            known.append(name)
        elif (
            not is_of_network(new) and tensor.ndim <= 1
        ):  # a counter or a loss's buffer; a layer has a weight of two or more axes
            unknown.append(name)
        elif new in tensors:
            raise InputError(
                f"{path} holds {shown(new)!r} twice, under names of two layouts, expected it once: save one of them alone."
            )
        else:
            tensors[new] = tensor
    places = frozenset(_join(where, original) for original in names.values())
    return _Network(key or TOP, tensors, tuple(known), tuple(unknown), places)


def _choose(path: str, networks: list[_Network], key: str | None, encoder_only: bool) -> _Network:
    """The one network that is meant."""
    keys = ", ".join(f"{shown(network.key)} ({len(network.tensors)} tensors)" for network in networks[:12])
    keys += f" and {len(networks) - 12} more" if len(networks) > 12 else ""
    fitting = networks
    if key is not None:
        fitting = [n for n in networks if n.key == key or (key != TOP and n.key.startswith(f"{key}."))]
        if not fitting:
            raise InputError(f"{path} has no network under {shown(key)!r}, expected as `key` (--key) one of: {keys}.")
    if not encoder_only and any(network.is_whole for network in fitting):
        fitting = [network for network in fitting if network.is_whole]
    if len(fitting) > 1 and not all(_same(network.tensors, fitting[0].tensors) for network in fitting[1:]):
        raise InputError(f"{path} holds several networks, expected one: choose with `key` (--key) one of: {keys}.")
    return fitting[0]


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where and name else where or name
