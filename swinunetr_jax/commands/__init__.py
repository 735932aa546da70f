"""One file per command of `swinunetr`: its options and messages; what it does is in the library."""
