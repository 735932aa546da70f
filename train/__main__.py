"""`python -m train` in a clone; installed it is `swinunetr train`."""

from swinunetr_jax.training.command import main

if __name__ == "__main__":
    main()
