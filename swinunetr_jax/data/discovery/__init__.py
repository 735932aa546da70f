"""Finds the cases of a folder, a list or a file, with their channels, labels and patients, and divides them into folds."""
