"""What several test files need: small data sets, fakes, and comparisons."""
