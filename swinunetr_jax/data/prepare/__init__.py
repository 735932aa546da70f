"""Reads a case's files into arrays on the network's grid, and keeps these arrays in a cache for training."""
