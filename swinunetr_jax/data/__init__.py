"""Data: from folders of scans to batches of training examples, on the host and without JAX.

The sub-packages import one another in one direction only; each may import those before it:

    boxes, brats    boxes of voxels; names and labels of the BraTS data sets
    nifti           NIfTI files: reading, orientations, writing
    discovery       which cases a folder or a list contains, their channels, labels, patients and folds
    check           finds everything that is wrong with a data set
    prepare         cases on the network's grid, and the cache that training reads
    augment         random transforms of a training example
    pipeline        batches of transformed examples, made by worker processes
    phantom         synthetic scans, for a first run without a download

`tests/test_model.py` checks this order.
"""
