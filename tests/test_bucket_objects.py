"""Objects in a bucket, and claims: what is done when the bucket fails, and when several processes want one run."""

import shutil
import threading
import time
from pathlib import Path

import pytest
from helpers.buckets import Bucket as Emulated
from helpers.refusals import refused

from swinunetr_jax import InputError
from swinunetr_jax.buckets import Bucket, BucketError, check_address, is_address, path_or_address
from swinunetr_jax.buckets import bucket as bucket_module
from swinunetr_jax.buckets.stored import StoredObject
from swinunetr_jax.training import claim
from swinunetr_jax.training.claim import Claim, ReplacedError


@pytest.fixture
def remote(bucket, use_bucket) -> Bucket:
    """Returns a place in an empty bucket."""
    use_bucket(bucket)
    return Bucket(bucket.url)


@pytest.fixture
def short_lease(monkeypatch) -> None:
    monkeypatch.setattr(claim, "LEASE_SECONDS", 0.8)


def test_addresses():
    assert is_address("gs://b/x") and is_address(Path("gs://b/x")) and is_address("s3:/b/x")
    assert not any(map(is_address, ("gs", "C:/x", "a/gs:/b", "http://b/x", "GS://b/x")))
    assert check_address(Path("gs://b/x/")) == check_address("gs:/b/x") == "gs://b/x" and path_or_address("a/b") == Path("a/b")
    for wrong in ("gs://b", "gs://b/", "gs:///x", "gs://b//x", "gs://b/../x", "gs:b/x", "gs:", "s3://b/./x", "gs://b/a\nb"):
        with refused("does not name a place in a bucket"):
            check_address(wrong)
    with refused("is an address of a remote store (hf:)"):
        path_or_address("hf://a/b")


def test_objects_are_written_listed_read_and_removed(remote, bucket, tmp_path):
    remote.write("a/b.txt", b"text")
    assert (remote / "a").read("b.txt") == b"text" and remote.names() == {"a/b.txt": 4} and remote.names("b") == {}
    assert remote.create("c", b"1") and not remote.create("c", b"2") and remote.read("c") == b"1"
    (tmp_path / "file").write_bytes(b"x" * 1000)
    done = []
    remote.upload({f"many/{n}": tmp_path / "file" for n in range(9)}, lambda *counts: done.append(counts))
    assert done == [(n, 9) for n in range(1, 10)]
    remote.download(remote.objects("many/"), tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy/many").iterdir()) == [str(n) for n in range(9)]
    assert all(path.read_bytes() == b"x" * 1000 for path in (tmp_path / "copy/many").iterdir())
    remote.remove(["a/b.txt", "never there", *(f"many/{n}" for n in range(9))])
    assert bucket.names() == ["c"]
    with pytest.raises(FileNotFoundError):
        remote.read("a/b.txt")
    with refused("nobucket-", "because there is no such bucket: check the address"):
        Bucket(f"{remote.address.partition('://')[0]}://nobucket-/x").names()


@pytest.mark.long
def test_more_than_a_thousand_objects(remote, bucket):
    bucket.write_many({f"run/{n:04d}": b"" for n in range(1003)})
    assert list((remote / "run").names()) == [f"{n:04d}" for n in range(1003)]


@pytest.mark.long
def test_an_answer_that_is_lost_or_cut_changes_nothing(bucket, proxied, use_bucket, tmp_path):
    proxy = proxied(bucket)
    use_bucket(proxy.bucket)
    remote = Bucket(bucket.url)
    proxy.fail("lost", "write", "claim")
    assert remote.create("claim", b"mine") and not remote.create("claim", b"another")
    bucket.write("large", b"y" * 100_000)
    proxy.fail("cut", "read", "large", times=2)
    remote.download({"large": remote.objects()["large"]}, tmp_path)
    assert (tmp_path / "large").read_bytes() == b"y" * 100_000
    proxy.fail("503", "list", times=2)
    assert remote.names() == {"claim": 4, "large": 100_000}
    assert list(tmp_path.iterdir()) == [tmp_path / "large"]  # no temporary files


@pytest.mark.long
def test_a_bucket_that_cannot_be_reached_or_forbids_ends_in_one_sentence(bucket, proxied, use_bucket, monkeypatch, capsys):
    proxy = proxied(bucket)
    use_bucket(proxy.bucket)
    remote = Bucket(bucket.url)
    monkeypatch.setattr(bucket_module, "PATIENCE_SECONDS", 3.0)
    proxy.read_only()
    with pytest.raises(BucketError, match=f"{bucket.url}/x cannot be written .*check the address and your access") as error:
        remote.write("x", b"")
    assert not error.value.lost
    proxy.away()
    with pytest.raises(BucketError, match=r"although it was tried for .*start the same command again") as error:
        remote.read("x")
    assert error.value.lost and f"{bucket.url}/x cannot be read" in str(error.value)


def test_a_full_disk_is_noticed_before_a_download(remote, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with refused(remote.address, "needs 0.00 GB on this machine", "set SWINUNETR_SCRATCH to a folder with more space"):
        remote.download({"x": StoredObject(950, "")}, tmp_path)


def nothing(*_) -> None:
    """Does nothing when a claim would print a sentence or end the process."""


@pytest.mark.usefixtures("short_lease")
def test_a_released_claim_is_followed_at_once_and_a_dead_one_after_a_lease(remote, bucket, capsys):
    first = Claim.take(remote, nothing)
    with refused(remote.address, "is in use by another training process (process"):
        Claim.take(remote, nothing, say=nothing)
    first.release()
    started = time.monotonic()
    second = Claim.take(remote, nothing)
    assert second.number == 2 and time.monotonic() - started < 0.4
    second._ended.set()  # as if its process had been killed
    second._thread.join()
    third = Claim.take(remote, nothing)
    assert third.number == 3 and "has not been released by process" in capsys.readouterr().out
    for old in (first, second):
        with refused("is now trained by another process (claim 3; this one had claim"):
            old.check()
    third.check()
    third.release()
    assert bucket.names() == ["claims/000001", "claims/000002", "claims/000003"]


@pytest.mark.long
@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("dead", [False, True])
def test_a_race_of_six_has_one_winner(dead, remote):
    if dead:
        ended = Claim.take(remote, nothing)
        ended._ended.set()
    winners, losers = [], []

    def race() -> None:
        try:
            winners.append(Claim.take(remote, nothing, say=nothing))
        except InputError as error:
            losers.append(str(error))

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [winner.number for winner in winners] == [1 + dead] and len(losers) == 5
    assert all("is in use by another training process" in error for error in losers)
    winners[0].release()


@pytest.mark.long
@pytest.mark.usefixtures("short_lease")
def test_the_owner_of_a_claim_is_ended_when_it_is_replaced(remote, bucket: Emulated):
    ended = threading.Event()
    errors: list[ReplacedError] = []
    Claim.take(remote, lambda error: (errors.append(error), ended.set()))
    bucket.write("claims/000007", b"{}")
    assert ended.wait(10) and "(claim 7; this one had claim 1)" in str(errors[0])
