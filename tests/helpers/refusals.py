"""A check of error messages: each is one sentence that names the file."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from swinunetr_jax.errors import InputError


@contextmanager
def refused(*words: object) -> Iterator[None]:
    """Asserts that the block raises an InputError of one sentence, which contains these words."""
    with pytest.raises(InputError) as caught:
        yield
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 500, text
    for word in words:
        assert str(word) in text, text
