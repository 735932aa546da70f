"""Command lines described by dataclasses: tyro parses them, and a mistake is explained in one sentence.

This package imports nothing heavy, so that `--help` and mistakes are answered immediately. A field is an option. A field that is a
dataclass is a group of options, whose names start with the name of the field unless it is marked `OmitArgPrefixes` or `arg(name="")`.
"""

from swinunetr_jax.arguments.mistakes import closest
from swinunetr_jax.arguments.option import Option, options
from swinunetr_jax.arguments.parse import check_paths, parse, rename_options

__all__ = ["Option", "check_paths", "closest", "options", "parse", "rename_options"]
