"""The command line starts quickly, explains mistakes in one sentence, and works with any file name and any output stream."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from swinunetr_jax import InputError, __version__, arguments, cli
from swinunetr_jax.commands.info import Info
from swinunetr_jax.training import command as trainer

HEAVY = {"wandb", "mlflow", "tensorboardX", "trackio", "jax", "jaxlib", "flax", "orbax", "matplotlib", "scipy", "optax", "grain"}
RECIPES = ("brats21", "btcv", "msd", "phantom", "strong")
PREDICT = ("predict", "-i", "scans", "-o", "out", "-m", "model")


def run(*command: str, capsys: pytest.CaptureFixture) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(list(map(str, command)))
    printed = capsys.readouterr()
    return exit_info.value.code, printed.out, printed.err


def process(*command: str | os.PathLike, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], capture_output="stdout" not in options, timeout=120, **options)


def scans(root: Path, *names: str | bytes) -> Path:
    """Writes cases of one channel with these names, without labels, and returns their folder."""
    array = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    for name in names:
        folder = Path(os.fsdecode(os.path.join(os.fsencode(root), os.fsencode(name))))
        folder.mkdir(parents=True)
        nib.save(nib.Nifti1Image(array, np.eye(4)), root / "scan.nii.gz")
        (root / "scan.nii.gz").rename(folder / "T1.nii.gz")
    return root


def test_the_trainer_imports_matplotlib_only_to_draw():
    program = "import sys, train.__main__, train.loop; print('matplotlib' in sys.modules)"
    completed = process("-c", program, cwd=Path(__file__).parents[1])
    assert completed.stdout.decode().strip() == "False", completed.stderr.decode()


@pytest.mark.fault("5.2")
def test_help_mistakes_and_validation_import_nothing_heavy(tmp_path):
    program = f"""
import sys
from swinunetr_jax import cli
commands = [[], ["--help"], ["--version"], ["predct"], ["predict", "--roi", "96"], ["predict", "--rio", "96"]]
for command in [*commands, *([name, "--help"] for name in cli.COMMANDS), ["validate", sys.argv[1]]]:
    try:
        cli.main(command)
    except SystemExit:
        pass
    print("HEAVY", command, sorted({HEAVY!r} & set(sys.modules)))
"""
    completed = process("-c", program, scans(tmp_path, "case"), text=True)
    lines = [line for line in completed.stdout.splitlines() if line.startswith("HEAVY")]
    assert len(lines) == 7 + len(cli.COMMANDS) and all(line.endswith("[]") for line in lines[:-1]), (
        completed.stdout + completed.stderr
    )
    assert lines[-1].endswith(("[]", "['scipy']"))  # validate may import scipy, but not JAX


@pytest.mark.fault("5.3")
def test_version(capsys):
    assert run("--version", capsys=capsys) == (0, f"swinunetr_jax {__version__}\n", "")


@pytest.mark.fault("5.3")
@pytest.mark.parametrize(
    ("command", "meant"),
    [
        (("predct",), "predict"),
        (("eval",), "evaluate"),
        (("--verson",), "--version"),
        ((*PREDICT, "--overlp", "0.5"), "--overlap"),
        ((*PREDICT, "--no-mirorr"), "--no-mirror"),
        ((*PREDICT, "--out", "x"), "--output"),
        (("convert", "a", "b", "--encoder_onli"), "--encoder-only"),
        (("validate", "x", "--worker=2"), "--workers"),
    ],
)
def test_a_mistyped_command_or_option_gets_a_suggestion(command, meant, capsys):
    code, out, error = run(*command, capsys=capsys)
    assert code == 2 and out == "" and f"did you mean {meant}?" in error and error.count("\n") == 1


def test_the_trainer_suggests_recipes_and_options():
    for command, meant in ((["brats2"], "brats21"), (["msd", "--lr", "1"], "--optim.lr"), (["--optim.emma", "1"], "--optim.ema")):
        with pytest.raises(InputError, match=f"did you mean {meant}?"):
            trainer.parse(command)


@pytest.mark.fault("5.8")
@pytest.mark.parametrize(
    ("arguments_text", "expected_type", "example"),
    [
        ("--roi 96", "three integers", "--roi 96 96 96"),
        ("--roi 96 96 96 96", "three integers", "--roi 96 96 96"),
        ("--roi 96 96 x", "three integers", "--roi 96 96 96"),
        ("--roi=96", "three integers", "--roi 96 96 96"),
        ("--overlap abc", "a number", "--overlap 0.5"),
        ("--overlap", "a number", "--overlap 0.5"),
        ("--batch 1.5", "an integer", "--batch 1"),
        ("--blend gaus", "gaussian or constant", "--blend gaussian"),
        ("--mirror yes", "no value", "--mirror or --no-mirror"),
        ("--window -175", "two numbers", "--window -175 250"),
        ("--window -175 -", "two numbers", "--window -175 250"),
        ("--spacing 1,1,1", "three numbers", "--spacing 1.5 1.5 2"),
        ("--window-size a", "one or more integers", "--window-size 1 2"),
        ("--num-groups x", "an integer", "--num-groups 96"),
    ],
)
def test_a_message_on_a_bad_value_names_the_type_and_an_example(arguments_text, expected_type, example, capsys):
    code, out, error = run(*PREDICT, *arguments_text.split(), capsys=capsys)
    name, *values = arguments_text.replace("=", " ").split()
    assert (code, out) == (2, "") and error.startswith(f"error: {name} takes {expected_type}") and example in error
    assert f"got {' '.join(values) or 'nothing'}" in error
    assert error.count("\n") == 1 and not re.search(r"class|\[|[╭│|]|tuple|NoneType|INT|FLOAT|Error", error)


@pytest.mark.fault("5.8")
@pytest.mark.fault("5.1")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), "a command is missing"),
        (("predict", "-i", "a"), "--output and --model must be given"),
        (("convert", "a"), "OUT must be given"),
        (("convert", "a", "b", "c"), "c is one argument too many"),
        (("convert", "a", "b", "c", "d"), "c d are 2 arguments too many"),
        (("info", "a", "--json", "b"), "b is one argument too many"),
        (("train", "msd"), "the recipe msd needs a data set: name its folder or list with --data"),
        (("--roi", "predict"), "give the command first"),
    ],
)
def test_missing_and_surplus_arguments_are_reported(command, words, capsys):
    code, out, error = run(*command, capsys=capsys)
    assert (code, out) == (2, "") and words in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.fault("5.8")
@pytest.mark.parametrize(
    ("arguments_text", "words"),
    [
        ("msd --roi 96", "--roi takes three integers"),
        ("msd --fold some", "--fold takes all, an integer or None"),
        ("--optim.betas 0.9", "`--optim.betas 0.9 0.999`"),
        ("msd --network.use-checkpoint 1", "--network.use-checkpoint or --network.no-use-checkpoint"),
        ("--resume RUN --pmap maybe", "--pmap takes True, False or None"),
        ("msd --phantom.cases 3", "no option --phantom.cases"),
    ],
)
def test_the_trainer_explains_bad_values_in_the_same_way(arguments_text, words):
    with pytest.raises(InputError) as refused:
        trainer.parse(arguments_text.split())
    assert words in str(refused.value) and "\n" not in str(refused.value)


def help_texts(printed: str) -> dict[str, str]:
    """Returns the help text of each option by its first name."""
    blocks = re.split(r"\n  (?=\S)", printed)
    texts = {}
    for block in blocks:
        head, _, rest = block.partition("\n")
        columns = re.split(r"\s{2,}", head.strip(), maxsplit=1)
        text = " ".join([*columns[1:], *rest.split("\n\n")[0].split()])
        texts[columns[0].split()[0].rstrip(",")] = re.sub(r"\(default:.*\)$|\(required\)$", "", text).strip()
    return texts


@pytest.mark.fault("5.9")
@pytest.mark.parametrize("name", [*cli.COMMANDS, *RECIPES, "--resume"])
def test_every_option_has_a_help_text(name, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([name, "--help"]) if name in cli.COMMANDS else trainer.parse([name, "--help"])
    assert exit_info.value.code == 0
    texts = help_texts(capsys.readouterr().out)
    if name in cli.COMMANDS:
        kinds = [cli.COMMANDS[name]]
    else:
        kinds = [trainer.Resume] if name == "--resume" else [trainer.PhantomCommand if name == "phantom" else trainer.Command]
    for option in (option for kind in kinds for option in arguments.options(kind)):
        assert len(texts[option.names[-1] if len(option.names) > 1 else option.names[0]]) > 8, option.names
    assert any(text.startswith("--phantom.") for text in texts) == (name in ("phantom", "prepare"))


@pytest.mark.fault("3.2")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_name_is_printed_on_any_encoding(tmp_path, encoding):
    root = scans(tmp_path, "年 → ×", b"no\xff")
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    completed = process("-m", "swinunetr_jax.cli", "validate", root, "--channels", "→", env=environment)
    assert completed.returncode == 1 and b"Traceback" not in completed.stderr
    printed = completed.stdout.decode(encoding)
    assert "no\\udcff" in printed and ("年 → ×" if encoding == "utf-8" else "\\u5e74 \\u2192") in printed


@pytest.mark.fault("3.2")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", [["--help"], ["predict", "--help"], ["--version"], ["validate", "SCANS"]])
def test_a_full_disk_behind_stdout_is_reported_once(tmp_path, command):
    root = scans(tmp_path, "case")
    with open("/dev/full", "w") as full:
        command = [str(root) if word == "SCANS" else word for word in command]
        completed = process("-m", "swinunetr_jax.cli", *command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert completed.returncode in (1, 2) and completed.stderr.count("stdout cannot be written (No space left on device)") == 1
    assert "Traceback" not in completed.stderr and "Exception" not in completed.stderr


@pytest.mark.fault("3.2")
@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "| true"])
def test_closed_streams_do_not_stop_a_command(tmp_path, closed):
    report = tmp_path / "report.json"
    command = f'"{sys.executable}" -m swinunetr_jax.cli validate "{scans(tmp_path / "d", "case")}" --json "{report}" {closed}'
    completed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert report.exists() and "Traceback" not in completed.stderr


@pytest.mark.fault("3.5")
def test_an_error_of_the_system_is_one_sentence(monkeypatch, capsys):
    def refuse(self):
        raise OSError(36, "File name too long", "x\x1b" * 3)

    monkeypatch.setattr(Info, "run", refuse)
    code, _, error = run("info", "x", capsys=capsys)
    assert code == 2 and error == f"error: {'x' + chr(92) + 'x1b'}".replace("x\\x1b", "x\\x1b" * 3) + (
        ": File name too long; check the path, its permissions and the free space.\n"
    )


@pytest.mark.fault("3.10")
def test_no_control_character_of_a_name_reaches_the_terminal(tmp_path, capsys):
    nasty = "a\x1b[31m\nb\r\x9b2J\u202e"
    root = scans(tmp_path / nasty, nasty, "sound")
    (root / nasty / "T1.nii.gz").write_bytes(b"")
    for command in (("validate", root), ("info", root / nasty), ("evaluate", root, root), (nasty,), ("info", f"--{nasty}")):
        code, out, error = run(*command, capsys=capsys)
        assert code and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out + error)
        assert not any(line.startswith(("b\r", "b\\r")) for line in (out + error).splitlines())
