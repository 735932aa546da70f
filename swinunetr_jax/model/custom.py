"""Networks other than Swin UNETR: the interface that the trainer, checkpoints and predictions use. `swinunetr_jax.registry` names them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from flax import nnx

from swinunetr_jax.errors import InputError
from swinunetr_jax.fields import is_int

CHANNELS = ("in_channels", "out_channels")
# Exceptions of a configuration's own code for values that it does not accept, such as an unknown field.
_REFUSALS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class NetworkFactory(Protocol):
    """A function that returns a network, or a subclass of `flax.nnx.Module` whose constructor takes these arguments.

    The network is called as `model(x, key=None, train=False)` with x [b, x, y, z, in_channels] and returns [b, x, y, z, out_channels].
    """

    __name__: str

    def __call__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs) -> nnx.Module: ...


class OwnConfig(Protocol):
    """The configuration of a network other than Swin UNETR, usually a frozen dataclass. It must be hashable.

    A network with such a configuration is created by `factory(config, rngs=rngs)`.
    """

    @property
    def in_channels(self) -> int: ...

    @property
    def out_channels(self) -> int: ...

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, including the channels, as JSON values."""
        ...

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Returns the configuration from the result of `to_dict`, or from only some fields, where the others have their defaults."""
        ...

    def check_spatial(self, spatial_shape: tuple[int, ...]) -> None:
        """Raises InputError unless the network accepts a volume of this spatial shape."""
        ...


@dataclass(frozen=True)
class CustomNetwork:
    """A kind of network: the name that checkpoints store, what creates it, and the class of its configuration if it has one.

    Attributes:
        name: the name.
        factory: a `NetworkFactory` or, if there is a `config_class`, (config, *, rngs) -> `flax.nnx.Module`.
        config_class: the class of the configuration, see `OwnConfig`, or None if the network depends only on its channels.
    """

    name: str
    factory: Callable[..., nnx.Module]
    config_class: type[OwnConfig] | None = None

    @classmethod
    def of(cls, network: "Callable[..., nnx.Module] | CustomNetwork", name: str | None = None) -> "CustomNetwork":
        """Returns the network of a factory, whose attribute `config_class` is the class of its configuration, if it has this attribute.

        Args:
            network: the factory, or a CustomNetwork, which is returned unchanged.
            name: the name, by default that of the factory.

        Raises:
            InputError: the factory cannot be called, or has no name.
        """
        if isinstance(network, CustomNetwork):
            return network
        name = name or getattr(network, "__name__", None)
        if not callable(network) or not isinstance(name, str):
            raise InputError(f"`network` must be a function or a class that creates a network, got {type(network).__name__}.")
        return cls(name, network, getattr(network, "config_class", None))

    def config(self, in_channels: int, out_channels: int, **settings: Any) -> "CustomConfig":
        """Returns a configuration with these channels; `settings` are further fields of the network's own configuration.

        Raises:
            InputError: the network has no configuration of its own, or it does not accept these values.
        """
        return self.read({**settings, "in_channels": in_channels, "out_channels": out_channels})

    def read(self, values: Mapping[str, Any]) -> "CustomConfig":
        """Returns the configuration from the result of `CustomConfig.to_dict`, with the errors of `config`."""
        fields = {name: value for name, value in values.items() if name != "network"}
        inputs, outputs = fields.get("in_channels", 0), fields.get("out_channels", 0)
        if not (is_int(inputs) and is_int(outputs) and inputs > 0 and outputs > 0):
            raise InputError("`in_channels` and `out_channels` of the network must be integers above 0.")
        if self.config_class is not None:
            return CustomConfig(self, inputs, outputs, self._own(self.config_class, fields))
        unknown = sorted(fields.keys() - set(CHANNELS))
        if unknown:
            raise InputError(f"the network {self.name} has no configuration of its own: leave out {', '.join(unknown)}.")
        return CustomConfig(self, inputs, outputs)

    def _own(self, kind: type[OwnConfig], fields: dict[str, Any]) -> OwnConfig:
        """Returns the network's own configuration. Raises InputError if it refuses the fields or cannot be stored."""
        try:
            own = kind.from_dict(fields)
            stored = json.loads(json.dumps(own.to_dict()))
            if kind.from_dict(stored) != own or hash(kind.from_dict(stored)) != hash(own):
                raise ValueError("`from_dict` does not return an equal configuration from the JSON of `to_dict`")
            if [stored.get(name) for name in CHANNELS] != [fields[name] for name in CHANNELS] or "network" in stored:
                raise ValueError("`to_dict` must have the given `in_channels` and `out_channels`, and no field `network`")
        except InputError:
            raise
        except _REFUSALS as error:
            raise InputError(f"the configuration {kind.__name__} of the network {self.name} cannot be used ({error}).") from error
        return own


@dataclass(frozen=True)
class CustomConfig:
    """The configuration of a network that a `CustomNetwork` creates. It is used instead of a `SwinUNETRConfig`."""

    network: CustomNetwork
    in_channels: int
    out_channels: int
    own: OwnConfig | None = None

    spatial_dims = 3
    dtype = "float32"

    @property
    def name(self) -> str:
        """The name of the network, which a checkpoint stores."""
        return self.network.name

    def make(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the network with random weights."""
        if self.own is not None:
            return self.network.factory(self.own, rngs=rngs)
        return self.network.factory(self.in_channels, self.out_channels, rngs=rngs)

    def check_spatial(self, spatial_shape: tuple[int, ...]) -> None:
        """Raises InputError if the network's own configuration does; without one, any size is accepted."""
        if self.own is not None:
            self.own.check_spatial(spatial_shape)

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as JSON values: the name of the network, its channels and its own fields, but no code."""
        own = {} if self.own is None else self.own.to_dict()
        return {"network": self.name, "in_channels": self.in_channels, "out_channels": self.out_channels, **own}
