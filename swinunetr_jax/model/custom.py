"""Networks other than Swin UNETR: what the trainer, checkpoints and predictions need to know of one."""

from dataclasses import dataclass
from typing import Any, Protocol

from flax import nnx

from swinunetr_jax.errors import InputError


class NetworkFactory(Protocol):
    """Makes a network, which is called as `model(x, key=None, train=False)`: x [b, x, y, z, in_channels] -> [b, x, y, z, out_channels].

    A class derived from `flax.nnx.Module` whose constructor takes these arguments is one.
    """

    __name__: str

    def __call__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs) -> nnx.Module: ...


@dataclass(frozen=True)
class CustomConfig:
    """The configuration of a network that a factory makes, in the place of a `SwinUNETRConfig`."""

    factory: NetworkFactory
    in_channels: int
    out_channels: int

    spatial_dims = 3
    dtype = "float32"

    @property
    def name(self) -> str:
        """The factory's name, by which a checkpoint knows the network."""
        return self.factory.__name__

    def make(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network with random weights."""
        return self.factory(self.in_channels, self.out_channels, rngs=rngs)

    def check_spatial(self, spatial_shape: tuple[int, ...]) -> None:
        """Any size is tried; the network itself says what it cannot take."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"network": self.name, "in_channels": self.in_channels, "out_channels": self.out_channels}

    @classmethod
    def from_dict(cls, values: dict[str, Any], factory: NetworkFactory | None) -> "CustomConfig":
        """The reverse of `to_dict`, with the factory that the caller has.

        Raises:
            InputError: there is no factory, or it is another one.
        """
        name = values.get("network")
        if factory is None:
            raise InputError(
                f"the network is {name}, which is not a Swin UNETR and comes from a recipe file: `swinunetr predict` takes it with "
                "--recipe FILE (in Python: `network`, the function or class that makes it)."
            )
        if factory.__name__ != name:
            raise InputError(f"the network is {name}, and the recipe makes {factory.__name__}: give the recipe of this run.")
        channels = values.get("in_channels"), values.get("out_channels")
        if not all(isinstance(count, int) and count > 0 for count in channels):
            raise InputError("`in_channels` and `out_channels` of the network must be integers above 0.")
        return cls(factory, *channels)
