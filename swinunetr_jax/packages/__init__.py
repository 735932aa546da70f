"""Models that can be passed on: packed models, MONAI bundles, model cards, and what is known of the published weights.

The readers are in `swinunetr_jax.weights`, so that every command takes a packed model or a bundle where it takes a checkpoint.
"""
