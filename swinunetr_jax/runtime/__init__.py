"""How a program is traced, compiled and run: the platform it targets, the options of XLA, the devices that share it, its memory."""
