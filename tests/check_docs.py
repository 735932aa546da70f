"""Checks the README and the documentation: links, options, and every code block, which is run.

    python tests/check_docs.py                  # everything; about a minute
    python tests/check_docs.py --no-run         # links and options only
    python tests/check_docs.py docs/train.md    # some pages

A block that cannot be run here has a comment above it, `<!-- not run: REASON -->`. The Python blocks of a page share their variables, and a
block with `title="FILE"` is also written to that file. In shell blocks, the commands of `swinunetr` are run, in this process and in a
folder with small synthetic data under the names that the documentation uses. Commands that train use a network of three layers instead of
Swin UNETR, small crops and a few steps.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
from helpers.compile_effort import set_least_effort  # noqa: E402
from helpers.docs_data import write_data  # noqa: E402
from helpers.docs_options import check_options, shown  # noqa: E402
from helpers.small_network import SmallNetwork, forget  # noqa: E402

from swinunetr_jax import cli  # noqa: E402
from swinunetr_jax.weights import fit, params  # noqa: E402

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md")
HISTORY = ("CHANGELOG.md",)  # pages that name options of earlier versions
LANGUAGES = {"": "text", "python": "python", "sh": "shell", "json": "json"}
_FENCE = re.compile(r"```(?: \{\.)?(\w*)(.*)")  # ```python, or ``` {.python} for text that ruff must not format
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
_TITLE = re.compile(r'title="([^"]+)"')
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_TRAINS = re.compile(r"\bswinunetr train\b|\bruns/")
# Options that make a command of the documentation short; options that a command already has are not replaced.
SHORT_TRAINING = {"--steps": "4", "--validation.every": "4", "--validation.overlap": "0", "--workers": "0", "--roi": "64 32 32"}
# The small network has few tensors, and a checkpoint that has fewer than its depths require is refused.
SHALLOW = {"--network.depths": "1 1 1 1"}
SHORT_PREDICTION = {"--roi": "64 32 32", "--overlap": "0"}


@dataclass(frozen=True)
class Block:
    """A code block: its page, the line where its text starts, its language, its info string, and the reason if it is not run."""

    page: Path
    line: int
    language: str
    info: str
    text: str
    not_run: str | None

    @property
    def where(self) -> str:
        return f"{shown(self.page)}:{self.line}"


def read_pages(names: list[str]) -> list[Path]:
    """Returns the pages to check."""
    return [Path(name).resolve() for name in names] or [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]


def blocks_of(page: Path) -> list[Block]:
    """Returns the code blocks of a page. Raises ValueError for an unknown language or a block without an end."""
    blocks: list[Block] = []
    reason, opening, lines = None, None, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = _FENCE.fullmatch(line.strip())
        if opening is None and fence:
            opening, lines = (number + 1, fence[1], fence[2]), []
            if fence[1] not in LANGUAGES:
                raise ValueError(f"{shown(page)}:{number}: the language {fence[1]!r} is none of {', '.join(LANGUAGES)}")
        elif opening is not None and line.strip() == "```":
            blocks.append(Block(page, opening[0], LANGUAGES[opening[1]], opening[2], "\n".join(lines), reason))
            opening, reason = None, None
        elif opening is not None:
            lines.append(line)
        elif comment := _NOT_RUN.fullmatch(line.strip()):
            reason = comment[1]
        elif line.strip() and not line.startswith("<!--"):
            reason = None
    if opening is not None:
        raise ValueError(f"{shown(page)}:{opening[0]}: the block has no end")
    return blocks


def prose_of(page: Path) -> list[tuple[int, str]]:
    """Returns the numbered lines of a page outside of code blocks."""
    inside, lines = False, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.strip().startswith("```"):
            inside = not inside
        elif not inside:
            lines.append((number, line))
    return lines


# ---- links


def anchors_of(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as the documentation's site and code hosts form them."""
    headings = [line.lstrip("#").strip() for _, line in prose_of(page) if line.startswith("#")]
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in headings}


def check_links(page: Path) -> tuple[list[str], Counter[str]]:
    """Returns the broken links of a page, and how many links were checked. Addresses of other sites are only counted."""
    faults, counts = [], Counter[str]()
    for number, line in prose_of(page):
        for target in _LINK.findall(line):
            if target.startswith(("http://", "https://")):
                counts["links to other sites, not followed"] += 1
                continue
            counts["links checked"] += 1
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            if not path.exists():
                faults.append(f"{shown(page)}:{number}: {target} does not exist")
            elif anchor and anchor not in anchors_of(path):
                faults.append(f"{shown(page)}:{number}: {name or page.name} has no heading {anchor}")
    return faults, counts


# ---- blocks


def commands_of(text: str) -> list[list[str]]:
    """Returns the words of each command of a shell block, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def shortened(words: list[str]) -> list[str]:
    """Returns the arguments of `swinunetr` with options that make it short."""
    if words[0] == "train" and "--help" not in words:
        if "--epochs" in words:
            index = words.index("--epochs")
            words = [*words[:index], "--steps", "6", *words[index + 2 :]]
        options = SHORT_TRAINING if "--network.name" in words else SHORT_TRAINING | SHALLOW
        return words if "--resume" in words else _with_options(words, options)
    if words[0] in ("predict", "saliency") and "--whole" not in words:
        return _with_options(words, SHORT_PREDICTION)
    return words


def _with_options(words: list[str], options: dict[str, str]) -> list[str]:
    added = [word for name, value in options.items() if name not in words for word in (name, *value.split())]
    return [*words, *added]


def run_command(words: list[str]) -> None:
    """Runs a command of `swinunetr` in this process. Raises RuntimeError if it fails."""
    if words[0] != "swinunetr":
        raise RuntimeError(f"`{words[0]}` is not run by this program: mark the block with the reason")
    try:
        cli.main(shortened(words[1:]))
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"{shlex.join(words)} ended with {stop.code}") from stop


@contextlib.contextmanager
def small_network() -> Iterator[None]:
    """Replaces Swin UNETR by a network of three layers."""
    try:
        with mock.patch.object(params, "SwinUNETR", SmallNetwork), mock.patch.object(fit, "SwinUNETR", SmallNetwork):
            forget()
            yield
    finally:
        forget()


def run_block(block: Block, names: dict[str, object]) -> str:
    """Runs a block in the current folder and returns what it printed. `names` are the variables of the page's Python blocks."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            if block.language == "json":
                json.loads(block.text)
            elif block.language == "python":
                if title := _TITLE.search(block.info):
                    Path(title[1]).write_text(block.text + "\n")
                exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)
            else:
                for words in commands_of(block.text):
                    with small_network() if _TRAINS.search(shlex.join(words)) else contextlib.nullcontext():
                        run_command(words)
        except Exception as error:
            raise RuntimeError(f"{block.where} failed:\n{traceback.format_exc()}\n{printed.getvalue()}") from error
    return printed.getvalue()


def run_page(page: Path, template: Path, folder: Path, verbose: bool) -> tuple[list[str], Counter[str], list[str]]:
    """Runs the blocks of a page in a new folder, and returns (faults, counts, messages about blocks that were not run)."""
    faults, counts, skipped = [], Counter[str](), []
    names: dict[str, object] = {"__name__": "documentation"}
    shutil.copytree(template, folder, symlinks=True)
    with contextlib.chdir(folder):
        for block in blocks_of(page):
            if block.language == "text":
                counts["blocks of text"] += 1
            elif block.not_run is not None:
                counts["blocks not run"] += 1
                skipped.append(f"{block.where} not run: {block.not_run}")
            else:
                counts["blocks run"] += 1
                started = time.perf_counter()
                try:
                    printed = run_block(block, names)
                except RuntimeError as error:
                    faults.append(str(error))
                    continue
                if verbose:
                    print(f"{block.where}: {time.perf_counter() - started:.1f} s\n{printed}", flush=True)
    return faults, counts, skipped


def main() -> int:
    """Prints what was checked, and each fault; returns 1 if there are faults."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="*", help="pages to check, by default all")
    parser.add_argument("--run", action=argparse.BooleanOptionalAction, default=True, help="run the code blocks")
    parser.add_argument("--verbose", action="store_true", help="print what each block prints, and its seconds")
    options = parser.parse_args()
    started, pages = time.perf_counter(), read_pages(options.pages)
    faults, counts, skipped = [], Counter[str](), []
    for page in pages:
        checks = [check_links(page)]
        if page.name not in HISTORY:
            checks.append(check_options(page, prose_of(page), blocks_of(page)))
        for page_faults, page_counts in checks:
            faults += page_faults
            counts += page_counts
    if options.run:
        with tempfile.TemporaryDirectory() as temporary:
            os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"  # for the page on many devices
            set_least_effort()
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_compilation_cache_dir", f"{temporary}/programs")
            write_data(Path(temporary) / "data")
            for number, page in enumerate(pages):
                page_faults, page_counts, page_skipped = run_page(
                    page, Path(temporary) / "data", Path(temporary) / str(number), options.verbose
                )
                faults += page_faults
                counts += page_counts
                skipped += page_skipped
    print("\n".join([*skipped, *faults]))
    print(
        f"{len(pages)} pages in {time.perf_counter() - started:.0f} s: " + ", ".join(f"{n} {kind}" for kind, n in counts.items())
    )
    print(f"{len(faults)} faults" if faults else "no fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
