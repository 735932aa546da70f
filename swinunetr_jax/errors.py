"""The one exception for a mistake in what the user gave."""


class InputError(ValueError):
    """Bad input: a file, an option, a shape, a checkpoint.

    Its message is one sentence: what is wrong, where, what was expected and what to do. The command line prints the message and
    exits with a non-zero code; from Python it is an ordinary `ValueError`.

    Args:
        lines: the message; where it lists several faults, each is a line and an argument of its own, so that a line break within one
            of them (file names may hold them) is known to come from data.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))
