"""One file per command of `swinunetr`, with its options and messages. The work itself is done by the library.

JAX and other heavy packages are imported only inside `run`, so that `--help` and mistyped options are answered immediately.
"""
