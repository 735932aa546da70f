"""Checks of a data set: of each case, and of all cases together."""
