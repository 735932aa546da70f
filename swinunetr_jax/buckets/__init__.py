"""Object storage: gs:// and s3:// addresses, their objects, and folders on this machine that hold copies of them.

A bucket has no folders, renames or locks, only objects that appear completely or not at all. So nothing here mounts a bucket: complete
objects are downloaded, verified by the code that verifies local files, and uploaded. `fsspec` is imported only when an address is used;
programs that use local paths never import it.
"""

from swinunetr_jax.buckets.address import MAY_BE_ADDRESS, MAY_BE_MODEL, check_address, is_address, is_hub_address, path_or_address
from swinunetr_jax.buckets.bucket import Bucket, BucketError
from swinunetr_jax.buckets.scratch import address_of, scratch_folder, shown

__all__ = [
    "MAY_BE_ADDRESS",
    "MAY_BE_MODEL",
    "Bucket",
    "BucketError",
    "address_of",
    "check_address",
    "is_address",
    "is_hub_address",
    "path_or_address",
    "scratch_folder",
    "shown",
]
