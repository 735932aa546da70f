"""Modules that several test files share: small data sets, fakes, and comparisons."""
