"""What the compiler has to be told beside the program, since its own choice is slower for these networks."""

import functools

import jax

# Without it XLA lays 3-D convolutions out with channels first: a transposition of the volume in front of the network and behind it, and
# kernels inside cuDNN that transpose each volume back to what tensor cores take.
GPU_OPTIONS = {"xla_gpu_force_conv_nhwc": True}


def compiler_options() -> dict[str, bool]:
    """For `jax.jit(..., compiler_options=compiler_options())` around a network: what helps on this machine's device.

    Nothing but on a GPU. An option that the installed XLA does not know is left out, so a program compiles with any version.
    """
    if jax.default_backend() != "gpu":
        return {}
    return {name: value for name, value in GPU_OPTIONS.items() if is_known(name, value)}


@functools.cache
def is_known(name: str, value: bool) -> bool:
    """Whether the installed XLA accepts an option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except Exception as error:
        if name in str(error):
            return False
        raise
    return True
