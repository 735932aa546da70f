"""The tables of `tools.benchmark` are written into a page from stored runs, and the performance page is the one that its runs give."""

from pathlib import Path

import pytest

from swinunetr_jax.errors import InputError
from tools import benchmark, benchmark_page
from tools.benchmark_results import Row, Run, read_run, write_run

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
VERSIONS = {"jax": "0.10.2"}


def ours(seconds, work="forward", **figures):
    return Row(work, 64, "ours", 48, "float32", seconds, flops=3e9, versions=VERSIONS, **figures)


FIRST = Run(
    "python -m tools.benchmark --against monai medicai",
    "2026-11-28",
    "A processor",
    2,
    0.26,
    1e10,
    (
        ours((1.0, 1.25, 2.0), host_bytes=1_190_000_000, first_call=19.6, cached_first_call=3.94),
        Row("forward", 64, "monai", 48, "float32", (2.0, 2.0, 4.2), host_bytes=1_270_000_000, versions={"torch": "2.13.0"}),
        Row("forward", 64, "medicai", 48, "float32", error="ModuleNotFoundError: No module named 'medicai'"),
    ),
)
SECOND = Run(
    "python -m tools.benchmark --work forward train",
    "2026-11-29",
    "A processor",
    2,
    None,
    0.0,
    (
        ours((4.0,)),
        Row("forward", 64, "monai", 48, "float32", (10.0,)),
        ours((0.0123,), "train"),
        Row("train", 64, "monai", 48, "float32", (0.0246,)),
    ),
    "A note.",
)
EXPECTED = """
- `python -m tools.benchmark --against monai medicai`: 2026-11-28; A processor, 2 cores; load by other programs 0.3; jax 0.10.2; torch 2.13.0; matrix products 10 GFLOP/s.
- `python -m tools.benchmark --work forward train`: 2026-11-29; A processor, 2 cores; load unknown; jax 0.10.2. A note.

| work | this project | MONAI | of the rate of matrix products |
| --- | --- | --- | --- |
| forward 64³, 48 features | 1.62 s (1.00–4.00) | 2.05 × (1.60–2.50) | 24% |
| train step 64³, 48 features | 12.3 ms | 2.00 × |  |

| peak memory, first result after | this project | MONAI |
| --- | --- | --- |
| forward 64³, 48 features | 1.19 GB, 20 s (3.9 s from the cache) | 1.27 GB |

- medicai was not compared: ModuleNotFoundError: No module named 'medicai'
"""  # noqa: E501


def store(folder):
    write_run(folder / "first.json", FIRST)
    write_run(folder / "second.json", SECOND)


def test_the_runs_of_a_section_are_combined_and_replace_its_text(tmp_path):
    store(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmark: first.json second.json -->\nold\n<!-- end of benchmark -->\nafter\n")
    benchmark_page.rebuild(page)
    assert page.read_text() == (
        f"before\n<!-- benchmark: first.json second.json -->\n{EXPECTED}\n<!-- end of benchmark -->\nafter\n"
    )
    once = page.read_text()
    benchmark_page.rebuild(page)
    assert page.read_text() == once


def test_a_stored_run_is_read_as_it_was_written(tmp_path):
    store(tmp_path)
    assert [read_run(tmp_path / "first.json"), read_run(tmp_path / "second.json")] == [FIRST, SECOND]


def test_the_performance_page_is_the_one_of_its_runs():
    text = PAGE.read_text()
    assert text.count("<!-- end of benchmark -->") >= 2
    assert benchmark_page.rebuilt(text, PAGE.parent) == text


def test_faults_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"the page has no section for results: add the lines .* to it\."):
        benchmark_page.rebuilt("text", tmp_path)
    with pytest.raises(InputError, match=r"the run .*gone\.json does not exist: measure it, or remove its name from the page\."):
        benchmark_page.rebuilt("<!-- benchmark: gone.json -->\n<!-- end of benchmark -->", tmp_path)
    with pytest.raises(InputError, match=r"unknown contender unet; the known ones are ours, .*monai.*medicai.*nnunet"):
        benchmark.main(benchmark.Options(against=("unet",)))
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark: a.json -->\n<!-- end of benchmark -->")
    with pytest.raises(InputError, match=r"--write rebuilds the tables of a page that names the file of --out"):
        benchmark.main(benchmark.Options(out=tmp_path / "b.json", write=page))
    with pytest.raises(InputError, match=r"--python medicai=/none is not NAME=INTERPRETER"):
        benchmark.environments_of(benchmark.Options(python=("medicai=/none",)), str(tmp_path))


def test_the_command_of_a_run_does_not_name_paths_of_the_machine():
    arguments = [
        "--work",
        "forward",
        "--out",
        "/a/b.json",
        "--python",
        "medicai=/c",
        "--sizes",
        "64",
        "--torch-cache=/d",
        "--repeats",
        "3",
    ]
    assert benchmark.arguments_of_measurement(arguments) == ["--work", "forward", "--sizes", "64", "--repeats", "3"]


def test_a_contender_that_cannot_be_installed_is_a_row_with_the_reason(monkeypatch):
    options = benchmark.Options(against=("nnunet",), repeats=0)
    race = benchmark.Race("forward", 64, options, {}, "")
    monkeypatch.setattr(race, "start", lambda: None)
    monkeypatch.setattr(race, "wait", lambda: None)
    (row,) = race.run()
    assert row.contender == "nnunet"
    assert row.error is not None and "contain no Swin UNETR" in row.error
