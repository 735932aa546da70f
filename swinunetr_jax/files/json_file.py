"""JSON files whose content is checked against types."""

import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from swinunetr_jax.errors import InputError
from swinunetr_jax.files.atomic import write_text
from swinunetr_jax.files.paths import reason

T = TypeVar("T")
MAX_JSON_BYTES = 1 << 30  # no JSON file of this project is larger


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON, indented by one space, with `atomic_path`. Numbers that are not finite become null, as in `json_text`."""
    write_text(path, json_text(value, indent=1) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON. JSON has no NaN and no infinities, so they become null."""
    return _dumps(value, indent=indent)


def read_json(path: str | os.PathLike, kind: type[T], remedy: str) -> T:
    """Returns the content of one of the project's own JSON files after checking its types.

    Args:
        path: the file.
        kind: the type of the content: a TypedDict, a dataclass, or a type such as dict[str, list[float]].
        remedy: the end of the message, which says what the user should do about a damaged file, such as "delete it".

    Raises:
        FileNotFoundError: the file does not exist, which a caller may distinguish from a damaged one.
        InputError: the file cannot be read, is not JSON, or holds values of other types; the message says where.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            raise InputError(f"{path} is not a file: {remedy}.")
        if status.st_size > MAX_JSON_BYTES:
            raise InputError(f"{path} has {status.st_size} bytes, expected at most {MAX_JSON_BYTES}: {remedy}.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"{path} cannot be read ({reason(error)}): {remedy}.") from error
    return decode_json(data, kind, str(path), remedy)


def decode_json(data: bytes, kind: type[T], where: str, remedy: str) -> T:
    """Returns the content of JSON text, such as a line of a log, with the checks of `read_json`; `where` names the text in messages."""
    try:
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            if b"\\ud" not in data.lower():
                raise
            # A file name that is not UTF-8 is stored with lone surrogates, which json reads and msgspec does not.
            return msgspec.convert(json.loads(data, parse_constant=_no_number, parse_float=_finite), type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where} has unexpected content ({_lower(str(error))}): {remedy}.") from error
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{where} is damaged ({_lower(str(error))}): {remedy}.") from error


def digest_of_json(value: Any) -> str:
    """Returns the SHA-256 of a JSON value in hexadecimal, which does not depend on the order of keys."""
    return hashlib.sha256(_dumps(value, sort_keys=True).encode()).hexdigest()


def check_stamp(values: dict[str, Any], where: str, format_: int, remedy: str) -> None:
    """Raises InputError if the content of a file does not match its value "digest", or if its value "format" is another number.

    Args:
        values: the content of the file.
        where: the path of the file, for messages.
        format_: the format that this version reads.
        remedy: what to do about a damaged file.
    """
    try:
        digest = digest_of_json({name: value for name, value in values.items() if name != "digest"})
    except RecursionError as error:  # writing JSON needs a deeper stack than reading it
        raise InputError(f"{where} is damaged (its values are nested too deeply): {remedy}.") from error
    if values.get("digest") != digest:
        raise InputError(f"{where} is damaged, because its content does not match its digest: {remedy}.")
    file_format = values.get("format")
    if isinstance(file_format, int) and file_format != format_:
        fitting = "a newer swinunetr_jax" if file_format > format_ else "the swinunetr_jax that wrote it"
        raise InputError(f"{where} has format {file_format}, this version reads format {format_}: use {fitting}.")


def _dumps(value: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    try:
        return json.dumps(value, indent=indent, sort_keys=sort_keys, allow_nan=False)
    except ValueError:  # rarely: a number is not finite
        return json.dumps(_without_nan(value), indent=indent, sort_keys=sort_keys, allow_nan=False)


def _without_nan(value: Any) -> Any:
    """Returns nested dicts, lists and tuples with NaN and infinities replaced by None. Tuples become lists."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is out of range")
    return number


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
