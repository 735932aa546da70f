"""Which cases a folder, a list or a file holds, what their channels are, and how they divide into folds."""
