"""The type of a device."""

from typing import Protocol


class Device(Protocol):
    """The attributes of `jax.Device` that are used here. jaxlib declares no types, so `jax.Device` itself cannot be an annotation."""

    @property
    def platform(self) -> str:
        """The kind of device, such as "cpu", "gpu" or "tpu"."""
        ...

    @property
    def id(self) -> int:
        """The number of the device among all devices."""
        ...

    @property
    def process_index(self) -> int:
        """The number of the process that the device belongs to."""
        ...
