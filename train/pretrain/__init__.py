"""Pre-training on scans without label maps: its objectives, its data, and how a segmentation network starts from it."""
