"""Random transforms of a training example, and the axes along which it must not be mirrored."""
