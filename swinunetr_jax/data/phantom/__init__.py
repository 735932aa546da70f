"""Synthetic heads with tumours: formulas for the tissues, images that resemble MRI, and files that are named as in BraTS."""
