"""Operations of HyenaND stages: a convolution with a kernel as large as the grid, and a small one for each channel by itself.

Letters in shapes: b batch, c channels, k kernel sizes, n points, e features.
"""
