"""A network as one file that runs without this package: a StableHLO program for JAX, or an ONNX file."""

from swinunetr_jax.export.load import ExportedNetwork, load_exported
from swinunetr_jax.export.onnx_file import export_onnx
from swinunetr_jax.export.stablehlo import export_stablehlo

__all__ = ["ExportedNetwork", "export_onnx", "export_stablehlo", "load_exported"]
