"""Compiled programs are stored for later runs, so that a resumed run does not compile again."""

import errno
import os
from pathlib import Path

import jax

from swinunetr_jax import console, files


def keep_programs(run: str | None = None) -> None:
    """Stores compiled programs in the user's cache folder or, for a run in a bucket, at RUN/programs. Prints a sentence if it cannot.

    It is impossible in a container without a home directory, where HOME is unset or the folder cannot be created. If the user has chosen a
    folder for JAX's cache, or has turned the cache off, nothing changes.

    Args:
        run: the address of the run, if it is in a bucket.
    """
    folder: str | None = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue] - defined at run time
    enabled: bool = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue] - defined at run time
    if folder is not None or not enabled:
        return
    if run is not None:  # a host that replaces another one has an empty disk
        jax.config.update("jax_compilation_cache_dir", f"{run}/programs")
        jax.config.update(
            "jax_persistent_cache_enable_xla_caches", "none"
        )  # XLA writes these itself, and cannot write into a bucket
        return
    try:
        programs = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swinunetr_jax"
        programs.mkdir(parents=True, exist_ok=True)
        if not os.access(programs, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (RuntimeError, OSError) as error:  # RuntimeError: there is no home
        reason = files.reason(error).rstrip(".")
        console.say(
            f"compiled programs are not kept for the next run ({reason}): set JAX_COMPILATION_CACHE_DIR to a folder for them"
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(programs))
