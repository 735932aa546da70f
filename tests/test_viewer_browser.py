"""A viewer page in a headless Chromium: it draws, labels have their colours, keys and mouse work, and a phone shows all of it."""

import io

import matplotlib.image
import numpy as np
import pytest
from helpers.browser import Page, browser, find_chromium

from swinunetr_jax import Task
from swinunetr_jax.viewer import LabelMap, viewer_contents, write_page

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium was found"),
]
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Returns the page of a grey cube in which a smaller cube is labelled, opened in a browser."""
    folder = tmp_path_factory.mktemp("viewer")
    scan = np.zeros((32, 32, 16), np.float32)
    scan[4:28, 4:28, 2:14] = np.random.default_rng(0).uniform(80, 120, (24, 24, 12))
    labels = np.zeros(scan.shape, np.uint8)
    labels[8:24, 8:24, 4:12] = 1
    other = np.roll(labels, 2, 0)
    contents = viewer_contents(
        {"T1": scan, "T2": 2 * scan},
        AFFINE,
        [LabelMap("prediction", labels), LabelMap("reference", other)],
        title="<b>case</b>",
        task=Task.classes(2, ("background", "liver")),
    )
    path = write_page(folder / "page.html", contents)
    with browser(folder / "profile") as opened:
        opened.size(1200, 800)
        opened.open(path)
        yield opened


def colour_at_the_cross(page: Page) -> np.ndarray:
    """Returns the colour of the pixel a little beside the middle of the drawing, in 0 … 255."""
    left, top, width, height = page.run(
        "(() => { const r = document.querySelector('#views canvas').getBoundingClientRect(); return [r.left, r.top, r.width, r.height] })()"
    )
    pixels = matplotlib.image.imread(io.BytesIO(page.screenshot()))
    return np.rint(255 * pixels[int(top + height / 2) + 9, int(left + width / 2) + 9, :3])


def press_until(page: Page, key: str, condition: str) -> None:
    for _ in range(12):
        if page.run(condition):
            return
        page.press(key)
    raise AssertionError(f"{key} never led to {condition}")


def test_labels_have_their_colours_and_keys_and_mouse_work(page):
    assert page.run("document.documentElement.dataset.state") == "ready" and page.errors == []
    assert all(address.startswith(("file:", "data:", "blob:")) for address in page.requests)
    assert page.run("document.querySelector('h1').textContent") == "<b>case</b>"
    press_until(page, "v", "viewer.state.view === 0")
    press_until(page, "+", "viewer.state.opacity >= 0.99")
    blue = page.run("viewer.page.maps[0].labels[0].colour")
    expected = np.array([int(blue[start : start + 2], 16) for start in (1, 3, 5)])
    np.testing.assert_allclose(colour_at_the_cross(page), expected, atol=12)
    page.press(" ")  # hides the label map
    red, green, blue = colour_at_the_cross(page)
    assert red == green == blue and red > 40
    page.press(" ")
    np.testing.assert_allclose(colour_at_the_cross(page), expected, atol=12)

    where = page.run("document.getElementById('where').textContent")
    page.press("ArrowRight")
    moved = page.run("document.getElementById('where').textContent")
    assert moved != where
    page.click(500, 300)
    clicked = page.run("document.getElementById('where').textContent")
    assert clicked != moved
    page.press("c")
    assert page.run("viewer.state.channel") == 1
    page.press("3")
    assert page.run("viewer.state.map") == 2  # the difference
    assert page.errors == []


def test_a_phone_shows_the_page_without_horizontal_scrolling(page):
    page.size(390, 800, phone=True)
    page.settle()
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.errors == []
