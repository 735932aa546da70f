"""Plans a training run: spacing, intensities, crop, batch, network and precision, from the data and the memory of the device.

`swinunetr plan` measures the scans (`fingerprint`, `measure`), decides (`decisions`, `search`) with the memory that the compiled training
step needs (`memory`), and writes the plan to a file (`plan_file`). `swinunetr train --plan FILE` uses the options of that file.
"""
