"""The README, the documentation, the Dockerfile and the citation agree with the code. `check_docs.py` also runs their code blocks."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from check_docs import HISTORY, blocks_of, check_links, commands_of, prose_of, read_pages, shortened
from helpers.docs_options import check_options

ROOT = Path(__file__).parents[1]
PAGES = read_pages([])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_options_of_a_page_exist(page):
    assert check_links(page)[0] == []
    if page.name not in HISTORY:
        assert check_options(page, prose_of(page), blocks_of(page))[0] == []


def test_faults_of_a_page_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title\n[good](#a-title) [bad](#none) [gone](gone.md) `--roi` `--rio`\n\n"
        "```sh\nswinunetr predict --overlap 0.5 --overlp 0.5  # --not-read\npython -m tools.pod_plan --topology v5e:4x4 --none\n```\n"
    )
    links, _ = check_links(page)
    assert links == ["page.md:2: page.md has no heading none", "page.md:2: gone.md does not exist"]
    (block,) = blocks_of(page)
    assert (block.line, block.language, block.not_run) == (5, "shell", None)
    assert check_options(page, prose_of(page), [block])[0] == [
        "page.md:2: there is no option --rio",
        "page.md:5: swinunetr predict --overlap has no option --overlp",
        "page.md:5: python -m tools.pod_plan has no option --none",
    ]


def test_a_block_is_marked_by_the_comment_above_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: slow -->\n<!-- test -->\n```sh\na\n```\n<!-- not run: old -->\ntext\n```python\nb\n```\n")
    assert [block.not_run for block in blocks_of(page)] == ["slow", None]


def test_commands_are_read_as_a_shell_reads_them():
    text = "swinunetr predict -i a \\\n  -o b  # a comment\n\nswinunetr info 'c d'\n"
    assert commands_of(text) == [["swinunetr", "predict", "-i", "a", "-o", "b"], ["swinunetr", "info", "c d"]]
    assert shortened(["train", "--resume", "R", "--epochs", "400"]) == ["train", "--resume", "R", "--steps", "6"]
    assert shortened(["info", "c"]) == ["info", "c"]


def test_the_readme_is_short_and_its_pictures_are_small():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert len(pictures) == 2
    assert all((ROOT / picture).stat().st_size < 200_000 for picture in pictures)


def test_the_commands_of_the_dockerfile_are_those_of_the_readme():
    """Docker itself is not started: `.ci/run` installs the package, and other tests train with it."""
    text, readme = (ROOT / "Dockerfile").read_text(), (ROOT / "README.md").read_text()
    (install,) = re.findall(r"^RUN (.+)$", text, re.MULTILINE)
    (start,) = re.findall(r"^CMD (.+)$", text, re.MULTILINE)
    (gpu,) = re.findall(r"^# RUN (.+)$", text, re.MULTILINE)
    assert f"```sh\n{install} && {' '.join(json.loads(start))}\n```" in readme
    assert f"`{gpu}`" in readme
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert re.search(r"\[(\w+)\]", gpu)[1] in extras
    program, *arguments = json.loads(start)
    assert program == "python"
    done = subprocess.run([sys.executable, *arguments, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--network.feature-size" in done.stdout, done.stderr


def test_notebooks_are_kept_without_their_output():
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"), path


def test_the_citation_has_the_version_of_the_package():
    from swinunetr_jax import __version__

    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
