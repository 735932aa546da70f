"""`console`: text from data is printed literally, and the progress shows the remaining time."""

from swinunetr_jax import console


def test_control_characters_and_surrogates_become_escapes():
    assert console.literal("a\x1b[31m\nb\udcffc") == "a\\x1b[31m\\nb\\udcffc"
    assert console.literal("Müller → ×") == "Müller → ×"


def test_formulas_are_text_in_a_spreadsheet():
    assert console.csv_cell('=HYPERLINK("x")') == '\'=HYPERLINK("x")'
    assert console.csv_cell("-1+2") == "'-1+2"
    assert console.csv_cell("case_1") == "case_1"


def test_progress_prints_a_few_lines_with_the_remaining_time(capsys):
    with console.Progress("case\x1b", "window") as progress:
        for done in range(1, 101):
            progress(done, 100)
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 4 and lines[0] == "case\\x1b: 25 of 100 windows, 0 s left" and lines[-1] == "case\\x1b: 100 of 100 windows"
    )
