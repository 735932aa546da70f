"""The operations that take most of a network's time. Each of them has one public function and one table of its implementations.

Letters in shapes: b batch, d h w grid (`*grid` in 2-D or 3-D), c channels, n windows or blocks, t s tokens of a window, m heads.
"""
