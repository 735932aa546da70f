"""Networks other than Swin UNETR: the interface that the trainer, checkpoints and predictions use."""

from dataclasses import dataclass
from typing import Any, Protocol

from flax import nnx

from swinunetr_jax.errors import InputError


class NetworkFactory(Protocol):
    """A function that returns a network, or a subclass of `flax.nnx.Module` whose constructor takes these arguments.

    The network is called as `model(x, key=None, train=False)` with x [b, x, y, z, in_channels] and returns [b, x, y, z, out_channels].
    """

    __name__: str

    def __call__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs) -> nnx.Module: ...


@dataclass(frozen=True)
class CustomConfig:
    """The configuration of a network that a factory creates. It is used instead of a `SwinUNETRConfig`."""

    factory: NetworkFactory
    in_channels: int
    out_channels: int

    spatial_dims = 3
    dtype = "float32"

    @property
    def name(self) -> str:
        """The name of the factory, which a checkpoint stores."""
        return self.factory.__name__

    def make(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the network with random weights."""
        return self.factory(self.in_channels, self.out_channels, rngs=rngs)

    def check_spatial(self, spatial_shape: tuple[int, ...]) -> None:
        """Accepts any size, because only the network itself knows its limits."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as JSON values, without the factory."""
        return {"network": self.name, "in_channels": self.in_channels, "out_channels": self.out_channels}

    @classmethod
    def from_dict(cls, values: dict[str, Any], factory: NetworkFactory | None) -> "CustomConfig":
        """Returns the configuration from the result of `to_dict` and the factory.

        Raises:
            InputError: the factory is None, or its name is not the stored one.
        """
        name = values.get("network")
        if factory is None:
            raise InputError(
                f"the network is {name}, which is not a Swin UNETR but is defined in a recipe file: pass this file to "
                "`swinunetr predict` as --recipe FILE or, in Python, pass the function or class that creates the network as `network`."
            )
        if factory.__name__ != name:
            raise InputError(f"the network is {name}, but the recipe creates {factory.__name__}: give the recipe of this run.")
        inputs, outputs = values.get("in_channels"), values.get("out_channels")
        if not (isinstance(inputs, int) and isinstance(outputs, int) and inputs > 0 and outputs > 0):
            raise InputError("`in_channels` and `out_channels` of the network must be integers above 0.")
        return cls(factory, inputs, outputs)
