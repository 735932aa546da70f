"""Tracing, compiling and running programs: the platform they target, options of XLA, the devices that share them, and memory."""
