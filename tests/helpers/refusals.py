"""What a refusal must look like, for the tests of files that users give."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from swinunetr_jax.errors import InputError


@contextmanager
def refused(*words: object) -> Iterator[None]:
    """One sentence with these words in it."""
    with pytest.raises(InputError) as caught:
        yield
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 500, text
    for word in words:
        assert str(word) in text, text
