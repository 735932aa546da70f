"""The type of a device, and the choice of the devices that compute."""

from typing import Protocol

from swinunetr_jax.errors import InputError

KINDS = ("cpu", "gpu", "tpu")


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


def use_device(name: str) -> None:
    """Makes JAX compute on the devices of a kind, or on one of them, from now on in this process.

    Args:
        name: "cpu", "gpu" or "tpu", or one device of a kind by its number, such as "gpu:1".

    Raises:
        InputError: the name is not one of these, or JAX cannot use such a device.
    """
    import jax

    kind, colon, number = name.lower().partition(":")
    if kind not in KINDS or (colon and not number.isdecimal()):
        raise InputError(f"the device {name!r} is unknown, expected cpu, gpu or tpu, or one device by its number such as gpu:1.")
    if kind == "cpu":
        jax.config.update("jax_platforms", "cpu")  # so that no memory of another device is taken
    try:
        devices = jax.devices(kind)
    except RuntimeError as error:
        found = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise InputError(
            f"JAX finds no {kind} on this machine, only {found}: install the support for it (see get-started.md) or choose another device."
        ) from error
    if colon and int(number) >= len(devices):
        raise InputError(f"the device {name} does not exist: JAX finds {len(devices)} of this kind, numbered from 0.")
    jax.config.update("jax_default_device", devices[int(number)] if colon else None)
