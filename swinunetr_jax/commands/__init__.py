"""One file per command of `swinunetr`: its options and messages; what it does is in the library.

The files import JAX and other heavy packages inside `run` alone, so that `--help` and mistyped options are answered at once.
"""
