"""The one exception for a mistake in what the user gave."""


class InputError(ValueError):
    """Bad input: a file, an option, a shape, a checkpoint.

    Its message is one sentence: what is wrong, where, what was expected and what to do. The command line prints the message and
    exits with a non-zero code; from Python it is an ordinary `ValueError`.
    """
