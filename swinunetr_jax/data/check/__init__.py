"""Everything that is wrong with a data set, case by case and as a whole."""
