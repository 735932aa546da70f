"""A package with networks that `pip install` could have written into a folder: a module and the metadata with its entry points."""

from pathlib import Path

MODULE = '''
"""Two networks without Swin UNETR: one depends only on its channels, the other one has a configuration."""

from dataclasses import asdict, dataclass

import jax
from flax import nnx

from swinunetr_jax import InputError


class Plain(nnx.Module):
    def __init__(self, in_channels, out_channels, *, rngs):
        self.out = nnx.Linear(in_channels, out_channels, rngs=rngs)

    def __call__(self, x, key=None, train=False):
        return self.out(x)


@dataclass(frozen=True)
class TinyConfig:
    in_channels: int
    out_channels: int
    width: int = 4
    drop_rate: float = 0.0

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        return cls(**values)

    def check_spatial(self, shape):
        if any(size % 16 for size in shape):
            raise InputError(f"Tiny takes multiples of 16, got {shape}.")


class Tiny(nnx.Module):
    config_class = TinyConfig

    def __init__(self, config, *, rngs):
        self.config = config
        self.hidden = nnx.Linear(config.in_channels, config.width, rngs=rngs)
        self.out = nnx.Linear(config.width, config.out_channels, rngs=rngs)

    def __call__(self, x, key=None, train=False):
        x = jax.nn.relu(self.hidden(x))
        if key is not None and self.config.drop_rate:
            x = nnx.Dropout(self.config.drop_rate)(x, rngs=nnx.Rngs(key))
        return self.out(x)
'''


def write_network_package(folder: Path, name: str = "tiny-networks", module: str = "tiny_networks", text: str = MODULE) -> Path:
    """Writes the package into a folder, which is a folder for `sys.path` then, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(text)
    metadata = folder / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[swinunetr_jax.networks]\nplain = {module}:Plain\ntiny = {module}:Tiny\n")
    return folder
