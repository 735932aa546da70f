"""Checks that every option mentioned in the documentation exists, for `check_docs.py`."""

import ast
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from swinunetr_jax import arguments as command_line
from swinunetr_jax import cli
from swinunetr_jax.training.command import PhantomCommand, PretrainCommand
from swinunetr_jax.training.options import Options
from swinunetr_jax.training.resume import Resume

ROOT = Path(__file__).parents[2]
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]")
_TOOL = re.compile(r"python -m tools\.(\w+)")
# Options of other programs, by the first words of the command.
FOREIGN = {
    "pip install": {"--dry-run"},
    "mkdocs build": {"--strict"},
    "python -m": {"--config_file", "--dataset_dir"},  # monai.bundle
    "sbatch": {"--nodes", "--distribution"},
    "docker run": {"--gpus", "--rm"},
    "docker build": {"--file", "--tag"},
    "kubectl apply": {"--filename"},
    "tpu_pod.sh": {"--accelerator-type", "--runtime-version", "--spot", "--delete", "--tries"},
    "xprof": {"--port"},
    "XLA": {"--xla_force_host_platform_device_count"},
}
EVERYWHERE = {"--help", "--version"}


def shown(page: Path) -> str:
    """Returns the path of a page for messages."""
    return str(page.relative_to(ROOT) if page.is_relative_to(ROOT) else page.name)


def check_options(page: Path, prose: Sequence[tuple[int, str]], blocks: Sequence[Any]) -> tuple[list[str], Counter[str]]:
    """Returns a message for each unknown option on a page, and the number of options that were checked.

    In a command an option has to be one of that command. In the text it has to be one of any command or tool.
    """
    faults, counts = [], Counter[str]()
    for number, line in prose:
        for code in re.findall(r"`[^`]*`", line):
            for option in _OPTION.findall(code):
                counts["options checked"] += 1
                if option not in _all_options():
                    faults.append(f"{shown(page)}:{number}: there is no option {option}")
    for block in blocks:
        if block.language != "shell":
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            options = [word.partition("=")[0] for word in words if word.startswith("--")]
            known = _command_options(words)
            counts["options checked"] += len(options)
            faults += [
                f"{block.where}: {' '.join(words[:3])} has no option {option}" for option in options if option not in known
            ]
    return faults, counts


@cache
def _all_options() -> frozenset[str]:
    """Returns the options of all commands, tools and other programs."""
    tools = [_tool_options(path.stem) for path in (ROOT / "tools").glob("*.py")]
    commands = [_names(kind) for kind in (*cli.COMMANDS.values(), Resume)]
    return frozenset(EVERYWHERE | _training_options()).union(*tools, *commands, *FOREIGN.values())


def _command_options(words: Sequence[str]) -> set[str] | frozenset[str]:
    """Returns the options of the command that consists of these words."""
    text = " ".join(words)
    if tool := _TOOL.search(text):
        return _tool_options(tool[1])
    if text.startswith(("swinunetr train", "python -m train")) or " -m train" in text:
        return EVERYWHERE | (_names(Resume) if "--resume" in words else _training_options())
    if words and words[0] == "swinunetr":
        return EVERYWHERE | (_names(cli.COMMANDS[words[1]]) if words[1] in cli.COMMANDS else set())
    return _all_options()


@cache
def _training_options() -> set[str]:
    options = Options(kind="labels")
    return _names(PhantomCommand, PhantomCommand(options)) | _names(PretrainCommand, PretrainCommand(options))


def _names(kind: type, default: Any = None) -> set[str]:
    """Returns the options of a dataclass, and for a flag also the form that switches it off."""
    option_names = set()
    for option in command_line.options(kind, default):
        names = [name.replace("_", "-") for name in option.names if name.startswith("--")]
        option_names.update(names)
        if option.is_flag:
            option_names.update(f"--{head}{dot}no-{last}" for head, dot, last in (name[2:].rpartition(".") for name in names))
    return option_names


@cache
def _tool_options(name: str) -> set[str]:
    """Returns the fields of a tool's classes, which include its options, without importing what the tool imports."""
    tree = ast.parse((ROOT / "tools" / f"{name}.py").read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    fields = [node.target.id for kind in classes for node in kind.body if isinstance(node, ast.AnnAssign)]
    return {f"--{field.replace('_', '-')}" for field in fields}
