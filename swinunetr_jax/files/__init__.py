"""Files that are written completely or not at all, JSON files with checked types, and digests. Imports neither JAX nor numpy.

This project writes every file with `atomic_path` (or `write_text` and `write_json`), and reads every JSON file that it has written with
`read_json`.
"""

from swinunetr_jax.files.atomic import (
    atomic_folder,
    atomic_path,
    is_temporary,
    locked,
    remove_stale_temporaries,
    write_bytes,
    write_text,
)
from swinunetr_jax.files.json_file import check_stamp, decode_json, digest_of_json, json_text, read_json, write_json
from swinunetr_jax.files.paths import (
    digest_of_file,
    exists,
    is_file,
    is_folder,
    local_path,
    make_folder,
    real_path,
    reason,
    user_cache,
)

__all__ = [
    "atomic_folder",
    "atomic_path",
    "check_stamp",
    "decode_json",
    "digest_of_file",
    "digest_of_json",
    "exists",
    "is_file",
    "is_folder",
    "is_temporary",
    "json_text",
    "local_path",
    "locked",
    "make_folder",
    "read_json",
    "real_path",
    "reason",
    "remove_stale_temporaries",
    "user_cache",
    "write_bytes",
    "write_json",
    "write_text",
]
