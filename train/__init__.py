"""The trainer: an application on top of swinunetr_jax, to be forked for an experiment. `python -m train RECIPE`."""
