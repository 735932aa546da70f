"""`python -m train`, which in a clone is the same as `swinunetr train`."""

from swinunetr_jax.training.command import main

if __name__ == "__main__":
    main()
