"""Assembles the HTML of a viewer page from its template, style, scripts and contents."""

from __future__ import annotations

import html
import json
import os
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from swinunetr_jax import console, files
from swinunetr_jax.errors import InputError
from swinunetr_jax.version import __version__
from swinunetr_jax.viewer.contents import Contents

NIIVUE = "niivue-0.69.0.umd.js"


def write_page(path: str | os.PathLike, contents: Contents) -> Path:
    """Writes a page, complete or not at all, and returns its path. Raises InputError if it cannot be written."""
    return _write(path, page_text(contents))


@dataclass(frozen=True)
class Frame:
    """A page as the value of a cell of a notebook, which displays it in a frame of this height in pixels."""

    contents: Contents
    height: int = 720

    def _repr_html_(self) -> str:
        text = html.escape(page_text(self.contents))
        return f'<iframe srcdoc="{text}" width="100%" height="{self.height}" style="border: 0"></iframe>'


def write_sentence(path: str | os.PathLike, title: str, sentence: str) -> Path:
    """Writes a page that only says why a scan is not shown, with the result and errors of `write_page`."""
    title, sentence = (html.escape(console.literal(text)) for text in (title, sentence))
    return _write(path, f'<!DOCTYPE html>\n<meta charset="utf-8">\n<title>{title}</title>\n<p>{sentence}</p>\n')


def _write(path: str | os.PathLike, text: str) -> Path:
    try:
        files.write_text(path, text)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({files.reason(error)}); give an existing folder with write access and space."
        ) from error
    return Path(path)


def page_text(contents: Contents) -> str:
    """Returns the HTML of a page. Text from data is escaped, so that a browser displays it literally."""
    arrays = (f'<script type="text/plain" id="{name}">{text}</script>' for name, text in contents.arrays.items())
    parts = {
        "title": html.escape(console.literal(contents.description["title"])),
        "style": _file("page.css"),
        "description": _json(contents.description | {"version": __version__}),
        "arrays": "\n".join(arrays),
        "niivue": _file(NIIVUE).replace("</script", "<\\/script"),
        "script": _file("page.js"),
    }
    pieces = _file("page.html").split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def _json(value: object) -> str:
    """Returns JSON that can stand inside a script element: text in it cannot end the element or start a comment."""
    text = json.dumps(_literal(value))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _literal(value: Any) -> Any:
    """Returns a JSON value whose text has control characters as visible escapes."""
    if isinstance(value, dict):
        return {name: _literal(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(item) for item in value]
    return console.literal(value) if isinstance(value, str) else value


@cache
def _file(name: str) -> str:
    return (resources.files("swinunetr_jax.viewer") / "static" / name).read_text("utf-8")
