"""Writes the files of one case of a folder of results: all of them, or none."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from swinunetr_jax import files
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.prediction_record import CaseEntry, OutputFile, Record
from swinunetr_jax.errors import InputError


@contextlib.contextmanager
def replace_case_files(
    record: Record, case: Case, outputs: Mapping[str, Path], overwrite: bool, write: Callable[[Mapping[str, Path]], None]
) -> Iterator[Callable[[CaseEntry], None]]:
    """Writes all files of a case under temporary names, gives them their final names, and then runs the block, which records the case.

    The first file of `outputs` gets its name last: if it exists, the case is complete. If a file cannot get its name, no other file of the
    case remains without the first one.

    Args:
        record: the record of the folder, which is locked in the block.
        case: the case.
        outputs: the final path of each file by its kind, the most important one first.
        overwrite: whether files that are not recorded are replaced.
        write: writes the files to the paths that it is called with, by their kinds.

    Yields:
        The function that records the finished case.

    Raises:
        AlreadyDone: another process has finished the case in the meantime, see `Record.replacing`.
        InputError: a file cannot be written, or would replace a foreign file.
    """
    first, *others = outputs
    with contextlib.ExitStack() as unfinished:
        # The stack renames the files in reverse order.
        temporary = {kind: unfinished.enter_context(files.atomic_path(path, _ending(path))) for kind, path in outputs.items()}
        try:
            write(temporary)
        except InputError as error:
            text = str(error)
            for kind, path in outputs.items():
                text = text.replace(str(temporary[kind]), str(path))
            raise InputError(text) from error
        with record.replacing(case, outputs, overwrite) as finish:
            try:
                unfinished.close()
            except OSError as error:
                for kind in others:
                    outputs[kind].unlink(missing_ok=True)
                where = error.filename or outputs[first]
                raise InputError(
                    f"{where} cannot be written ({files.reason(error)}): check the folder and its free space."
                ) from error
            yield finish


def recorded(outputs: Mapping[str, Path]) -> dict[str, OutputFile]:
    """Returns the names and the sizes of written files by their kinds, as a record states them."""
    return {kind: OutputFile(path=path.name, bytes=path.stat().st_size) for kind, path in outputs.items()}


def _ending(path: Path) -> str:
    """Returns the ending of a file, on which its writer depends."""
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
