"""One file per experiment: its data, its hardware, what to expect and the command, in its docstring; its fields in RECIPE."""
