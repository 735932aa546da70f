"""Prepared data sets, which `swinunetr prepare` writes into a folder or a bucket. They hold all that a training needs of the cases.

    PLACE/NAME-KEY-image.npy, -label.npy, -voxels.npy   the arrays of a case, as in the cache of a training
    PLACE/NAME-KEY-reference.nii.gz                     its label map on the scan's own grid, if scans are resampled
    PLACE/NAME-ID.json                                  written after the arrays, so that its existence means that the case is complete
    PLACE/splits_final.json                             the folds, if the data set has this file
    PLACE/prepared.json                                 written last: the cases and their files, the labels and the options

Names contain digests of the files' content and of the options, and equal input gives equal bytes. So several processes may prepare the same
data set into the same place at the same time.
"""
