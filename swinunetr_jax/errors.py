"""The exception for invalid input from the user."""


class InputError(ValueError):
    """Bad input: a file, an option, a shape, a checkpoint.

    The message is one sentence: what is wrong, where, what was expected and what to do. The command line prints the message and
    exits with a non-zero code; in Python it is an ordinary `ValueError`.

    Args:
        lines: the message. If it lists several faults, each of them is a line and a separate argument, so that a line break within an
            argument is known to come from data, such as a file name.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))
