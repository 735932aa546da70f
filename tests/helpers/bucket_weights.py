"""Helpers of tests of weights in a bucket on loopback, to which this process is connected."""

from pathlib import Path

import pytest

from helpers.buckets import Bucket
from swinunetr_jax.buckets import bucket


@pytest.fixture
def here(gcs_bucket, use_bucket, tmp_path, monkeypatch) -> Bucket:
    """Returns an empty folder of a bucket to which this process is connected. The test has its own scratch folder."""
    return connect(gcs_bucket, use_bucket, tmp_path, monkeypatch)


def connect(place: Bucket, use_bucket, tmp_path: Path, monkeypatch) -> Bucket:
    use_bucket(place)
    bucket._file_system.cache_clear()
    monkeypatch.setenv("SWINUNETR_SCRATCH", str(tmp_path / "scratch"))
    return place


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(place: Bucket, prefix: str, folder: Path) -> None:
    """Copies a folder into a bucket, below a prefix."""
    place.write_many({f"{prefix}/{name}": content for name, content in files_of(folder).items()})
