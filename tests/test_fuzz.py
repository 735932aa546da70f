"""Damaged files of every kind are refused in a sentence or read correctly; `python -m tools.fuzz` tries many more."""

import random

import pytest

pytest.importorskip("torch")

from tools import fuzz, fuzz_targets, mutations
from tools.fuzz import Options, Tally

COUNT = 40  # damaged files of each kind, which take a few seconds in all


@pytest.mark.parametrize("kind", fuzz_targets.TARGETS)
def test_damaged_files_are_refused_or_read_correctly(tmp_path, kind):
    tally = fuzz.fuzz(fuzz_targets.TARGETS[kind](tmp_path), COUNT, seed=1)
    assert tally.wrong == []
    assert tally.refused + tally.accepted == tally.tried > COUNT / 2


def test_a_wrong_reader_is_detected_and_the_damaged_file_is_kept(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    target = fuzz_targets.Target(
        "text", [path], [mutations.edit_json], path.read_bytes, lambda data: None if b"a" in data else "lost"
    )
    tally = fuzz.fuzz(target, 200, seed=0, keep=tmp_path / "kept")
    assert tally.wrong and all("lost" in fault for fault in tally.wrong) and tally.refused == 0
    assert len(list((tmp_path / "kept").iterdir())) == len(tally.wrong) and path.read_text() == '{"a": 1}'
    assert "| text |" in fuzz.table([tally]) and fuzz.table([Tally("none")]).endswith("| none | 0 | 0 | 0 | 0 | 0.00 | 0 |")
    with pytest.raises(fuzz.InputError, match="--only has nothing, expected some of pt, "):
        fuzz.run(Options(only=("nothing",)))


def test_the_same_seed_gives_the_same_damage():
    for mutate in (mutations.damage_bytes, mutations.edit_json):
        first, same, other = (mutate(random.Random(seed), b'{"a": [1, 2, 3], "b": {"c": "text"}}') for seed in (1, 1, 2))
        assert first == same != other
