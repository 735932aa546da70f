"""Synthetic heads with tumours: tissue by formulas, images as MRI shows them, files as BraTS names them."""
