"""The size of the training crops."""

from swinunetr_jax import InputError, Task


def crop_size(task: Task) -> tuple[int, int, int]:
    """Returns the size of the training crops. Raises InputError unless the task has a window size for three axes."""
    if task.roi is None or len(task.roi) != 3:
        raise InputError(f"the task has the window size {task.roi}, expected three sizes: give --roi.")
    return task.roi[0], task.roi[1], task.roi[2]
