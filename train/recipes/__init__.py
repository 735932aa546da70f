"""The recipes of the trainer, one per file. A docstring states the command, the data, the hardware and the result to expect."""
