"""Label maps drawn in colours over grey images. Pictures are numpy arrays of red, green and blue in 0 … 1."""

import numpy as np

from swinunetr_jax.task import Task

# The colours of Okabe and Ito, which colour-blind readers can distinguish. If there are more labels, the colours repeat.
COLOURS = ("#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#0072B2")


def grey_levels(image: np.ndarray) -> np.ndarray:
    """Returns the image scaled to 0 … 1, with the darkest and brightest half per cent of its non-zero voxels clipped."""
    inside = image[image != 0]
    low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0.0, 1.0)
    return np.clip((image - low) / max(high - low, 1e-12), 0, 1)


def colours_of(task: Task) -> dict[int, str]:
    """Returns a colour for each label value of the task except the background."""
    values = [output.value for output in task.outputs if output.value]
    return {value: COLOURS[index % len(COLOURS)] for index, value in enumerate(values)}


def overlay_labels(picture: np.ndarray, labels: np.ndarray, colours: dict[int, str]) -> np.ndarray:
    """Returns a picture [..., 3] with the labels [...] in their colours over it."""
    from matplotlib.colors import to_rgb

    picture = picture.copy()
    for value, colour in colours.items():
        mask = labels == value
        picture[mask] = 0.45 * picture[mask] + 0.55 * np.array(to_rgb(colour))
    return picture
