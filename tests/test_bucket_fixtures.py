"""The buckets on loopback that other tests use, and the proxy that fails on purpose, do what their descriptions say.

Most of these tests talk to the servers without fsspec, which repeats failed requests by itself, and therefore takes longer.
"""

import contextlib
import hashlib
import http.client
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import fsspec
import pytest
from helpers.buckets import NAME, Bucket
from helpers.object_requests import ObjectRequest, parse_request
from helpers.proxy import Proxy

pytestmark = pytest.mark.long


class Answer:
    """The answer to a request, as `ask` returns it; `content` may be shorter than the answer announced."""

    def __init__(self, status: int, content: bytes, whole: bool):
        self.status, self.content, self.whole = status, content, whole


def ask(
    bucket: Bucket, operation: str, name: str = "", content: bytes = b"", *, create: bool = False, timeout: float = 20
) -> Answer:
    """Sends one request on a new connection, to the proxy if `bucket` has one. Raises OSError or HTTPException if there is no answer."""
    google = bucket.emulator.kind == "gcs"
    key = quote(f"{bucket.prefix}/{name}", safe="")
    # The emulators check no signature, but that of S3 requires one.
    headers = (
        {} if google else {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, Signature=0"}
    )
    if create and not google:
        headers["If-None-Match"] = "*"
    if operation == "write" and google:  # in the form that gcsfs chooses, because in others the emulator ignores the condition
        method, target = (
            "POST",
            f"/upload/storage/v1/b/{NAME}/o?uploadType=multipart" + ("&ifGenerationMatch=0" if create else ""),
        )
        headers["Content-Type"] = 'multipart/related; boundary="=="'
        description = b'--==\nContent-Type: application/json\n\n{"name": "%s/%s"}\n--==\n' % (
            bucket.prefix.encode(),
            name.encode(),
        )
        content = description + b"Content-Type: application/octet-stream\n\n" + content + b"\n--==--"
    elif operation == "list":
        method, target = "GET", f"/storage/v1/b/{NAME}/o?prefix={key}" if google else f"/{NAME}?list-type=2&prefix={key}"
    else:
        method = {"write": "PUT", "read": "GET", "delete": "DELETE"}[operation]
        target = (f"/storage/v1/b/{NAME}/o/{key}" + ("?alt=media" if operation == "read" else "")) if google else f"/{NAME}/{key}"
    connection = http.client.HTTPConnection("127.0.0.1", int(bucket.endpoint.rpartition(":")[2]), timeout=timeout)
    try:
        connection.request(method, target, content, headers)
        answer = connection.getresponse()
        try:
            return Answer(answer.status, answer.read(), True)
        except http.client.IncompleteRead as error:
            return Answer(answer.status, error.partial, False)
    finally:
        connection.close()


def content_of(bucket: Bucket, name: str) -> bytes | None:
    """Returns the contents of an object, read from the emulator directly, or None if there is no such object."""
    answer = ask(bucket.emulator.bucket(bucket.prefix), "read", name)
    assert answer.status in (200, 404)
    return answer.content if answer.status == 200 else None


def listed(answer: Answer) -> list[str]:
    """Returns the last parts of the names of the objects in the answer to a listing."""
    found = re.findall(rb'"name":\s*"(.*?)"|<Key>(.*?)</Key>', answer.content)
    return [(google or s3).decode().rpartition("/")[2] for google, s3 in found]


@pytest.fixture
def proxy(bucket: Bucket, proxied: Callable[[Bucket], Proxy]) -> Proxy:
    return proxied(bucket)


def test_create_if_absent_has_one_winner_of_six(bucket: Bucket) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda index: ask(bucket, "write", "claim", b"%d" % index, create=True).status, range(6)))
    assert sorted(answers) == [200, 412, 412, 412, 412, 412]
    assert content_of(bucket, "claim") == b"%d" % answers.index(200)


@pytest.mark.long
def test_fsspec_in_this_process_and_direct_access_to_the_emulator(bucket: Bucket, use_bucket: Callable[[Bucket], None]) -> None:
    use_bucket(bucket)
    files, path = fsspec.url_to_fs(f"{bucket.url}/claims/000001")
    files.pipe_file(path, b"first", mode="create")
    with pytest.raises(FileExistsError):
        files.pipe_file(path, b"second", mode="create")
    assert bucket.objects() == {"claims/000001": b"first"}
    bucket.flip("claims/000001")
    bucket.write("a", b"0123")
    bucket.flip("a", 3)
    assert bucket.digests() == {"a": hashlib.sha256(b"0122").hexdigest(), "claims/000001": hashlib.sha256(b"fisst").hexdigest()}
    assert files.cat_file(path, start=2, end=4) == b"ss"
    bucket.delete("a")
    assert bucket.names() == ["claims/000001"] and (bucket / "claims").names() == ["000001"]


def test_failures_without_and_with_an_effect(proxy: Proxy) -> None:
    for name, kind in (("a", "503"), ("b", "429"), ("c", "dropped"), ("d", "lost"), ("e", "cut"), ("f", "slow")):
        proxy.fail(kind, "write", f"/{name}$", nth=2, seconds=0.1)
    bucket = proxy.bucket
    for name in "abcdef":
        assert ask(bucket, "write", name, b"1").status == 200
    assert ask(bucket, "write", "a", b"2").status == 503 and content_of(bucket, "a") == b"1"
    assert ask(bucket, "write", "b", b"2").status == 429 and content_of(bucket, "b") == b"1"
    for name, content in (("c", b"1"), ("d", b"2")):
        with pytest.raises(http.client.RemoteDisconnected):
            ask(bucket, "write", name, b"2")
        assert content_of(bucket, name) == content
    if bucket.emulator.kind == "gcs":
        assert not ask(bucket, "write", "e", b"2").whole
    else:  # the answer of S3 to an upload has no contents that could be cut
        with pytest.raises(http.client.RemoteDisconnected):
            ask(bucket, "write", "e", b"2")
    assert content_of(bucket, "e") == b"2"
    before = time.monotonic()
    assert ask(bucket, "write", "f", b"2").status == 200 and time.monotonic() - before >= 0.1
    assert ask(bucket, "write", "a", b"3").status == 200  # the rule was for one request
    assert proxy.counts() == {"ok": 7, "503": 1, "429": 1, "dropped": 1, "lost": 1, "cut": 1, "slow": 1}
    assert [request.status for request in proxy.requests("write", "/c")] == [200, None]


def test_a_cut_read_and_short_listings(proxy: Proxy) -> None:
    bucket = proxy.bucket
    for name in "abcd":
        ask(bucket, "write", name, b"01234567")
    proxy.fail("cut", "read")
    proxy.fail("short", "list")
    cut = ask(bucket, "read", "a")
    assert (cut.status, cut.content, cut.whole) == (200, b"0123", False)
    assert ask(bucket, "read", "a").content == b"01234567"
    assert [listed(ask(bucket, "list")) for _ in range(2)] == [["a", "b"], ["a", "b", "c", "d"]]
    proxy.page(3)
    page = ask(bucket, "list")
    assert listed(page) == ["a", "b", "c"] and re.search(b"nextPageToken|<NextContinuationToken>", page.content)


def test_a_share_of_the_requests_fails_equally_with_the_same_seed(proxy: Proxy) -> None:
    sequences = []
    for seed in (3, 3, 4):
        proxy.fail_at_random(0.3, ["503", "429"], seed)
        sequences.append([ask(proxy.bucket, "read", "a").status for _ in range(40)])
    assert sequences[0] == sequences[1] != sequences[2]
    assert 5 <= sum(status != 404 for status in sequences[0]) <= 20  # 12 are expected
    proxy.clear()
    assert {ask(proxy.bucket, "read", "a").status for _ in range(10)} == {404}


def test_held_requests_wait_for_their_release(proxy: Proxy) -> None:
    proxy.fail("hold", "write", "a$", times=2)
    proxy.fail("hold_answer", "write", "b$")
    with ThreadPoolExecutor(1) as pool:
        closed = pool.submit(ask, proxy.bucket, "write", "a", b"0")
        assert [request.names for request in proxy.wait_for_held()] == [(f"{proxy.bucket.prefix}/a",)]
        proxy.release(carry_out=False)
        assert isinstance(closed.exception(), http.client.RemoteDisconnected) and content_of(proxy.bucket, "a") is None

        late = pool.submit(ask, proxy.bucket, "write", "a", b"1")
        proxy.wait_for_held()
        assert content_of(proxy.bucket, "a") is None and not late.done()
        proxy.release()
        assert late.result().status == 200 and content_of(proxy.bucket, "a") == b"1"

        late = pool.submit(ask, proxy.bucket, "write", "b", b"2")
        proxy.wait_for_held()
        assert content_of(proxy.bucket, "b") == b"2" and not late.done()
        proxy.release()
        assert late.result().status == 200


def test_an_unavailable_proxy_and_a_read_only_one(proxy: Proxy) -> None:
    proxy.away()
    with pytest.raises(ConnectionRefusedError):
        ask(proxy.bucket, "write", "a")
    proxy.back()
    assert ask(proxy.bucket, "write", "a", b"1").status == 200
    proxy.away(how="503")
    assert ask(proxy.bucket, "read", "a").status == 503
    proxy.away(how="silent")
    with pytest.raises(TimeoutError):
        ask(proxy.bucket, "write", "a", b"2", timeout=0.1)
    proxy.wait_for_held()
    assert content_of(proxy.bucket, "a") == b"1"
    proxy.back()
    # The request of a client that has disconnected is carried out late.
    proxy.wait_for(lambda request: request.kind == "hold" and request.status == 200)
    assert content_of(proxy.bucket, "a") == b"2"
    proxy.read_only()
    assert [ask(proxy.bucket, operation, "a", b"3").status for operation in ("read", "write", "delete")] == [200, 403, 403]


def test_unavailable_from_a_named_request_on(proxy: Proxy) -> None:
    proxy.fail("away", "write", "/b$", seconds=0.3)
    assert ask(proxy.bucket, "write", "a", b"1").status == 200
    with pytest.raises(http.client.RemoteDisconnected):
        ask(proxy.bucket, "write", "b", b"1")
    with pytest.raises(ConnectionRefusedError):
        ask(proxy.bucket, "read", "a")
    status, deadline = None, time.monotonic() + 10
    while status != 404 and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            status = ask(proxy.bucket, "read", "b").status
    assert status == 404  # the proxy is available again, and the request was not carried out


def test_a_paused_server_answers_when_it_is_resumed(bucket: Bucket) -> None:
    with bucket.emulator.paused(), pytest.raises(TimeoutError):
        ask(bucket, "write", "a", b"1", timeout=0.1)
    deadline = time.monotonic() + 10
    while content_of(bucket, "a") != b"1":
        assert time.monotonic() < deadline


def test_descriptions_of_requests() -> None:
    upload = "/upload/storage/v1/b/tests/o"
    description = b'--==0==\nContent-Type: application/json; charset=UTF-8\n\n{"name": "r/a b"}\n--==0==\n\n'
    batch = b"--=\r\n\r\nDELETE /storage/v1/b/tests/o/r%2Fa HTTP/1.1\r\n\r\n--=\r\n\r\nDELETE /storage/v1/b/tests/o/r%2Fb HTTP/1.1\r\n"
    expected = {
        ("POST", f"{upload}?uploadType=multipart", "", description): ("write", "r/a b"),
        ("POST", f"{upload}?uploadType=resumable&name=r%2Fa", "", b""): ("start", "r/a"),
        ("PUT", f"{upload}?name=r%2Fa&upload_id=7", "bytes 0-9/*", b""): ("part", "r/a"),
        ("PUT", f"{upload}?name=r%2Fa&upload_id=7", "bytes 0-9/20", b""): ("part", "r/a"),
        ("PUT", f"{upload}?name=r%2Fa&upload_id=7", "bytes 10-19/20", b""): ("write", "r/a"),
        ("GET", "/storage/v1/b/tests/o/r%2Fa", "", b""): ("stat", "r/a"),
        ("GET", "/download/storage/v1/b/tests/o/r%2Fa?alt=media", "", b""): ("read", "r/a"),
        ("GET", "/storage/v1/b/tests/o?delimiter=%2F&prefix=r%2F", "", b""): ("list", "r/"),
        ("POST", "/storage/v1/b/tests/o/r%2Fa/rewriteTo/b/tests/o/r%2Fb", "", b""): ("copy", "r/b"),
        ("POST", "/batch/storage/v1", "", batch): ("delete", "r/a", "r/b"),
        ("PUT", "/tests/r/a%20b", "", b""): ("write", "r/a b"),
        ("POST", "/tests/r/a?uploads", "", b""): ("start", "r/a"),
        ("PUT", "/tests/r/a?uploadId=7&partNumber=1", "", b""): ("part", "r/a"),
        ("POST", "/tests/r/a?uploadId=7", "", b""): ("write", "r/a"),
        ("HEAD", "/tests/r/a", "", b""): ("stat", "r/a"),
        ("POST", "/tests?delete", "", b"<Delete><Object><Key>r/a</Key></Object></Delete>"): ("delete", "r/a"),
        ("GET", "/tests?list-type=2&prefix=r%2F", "", b""): ("list", "r/"),
    }
    for (method, target, part, body), (operation, *names) in expected.items():
        google = target.startswith(("/upload", "/storage", "/download", "/batch"))
        found = parse_request(method, target, {"Content-Range": part} if part else {}, body)
        assert found == ObjectRequest(operation, tuple(names), google), target


@pytest.mark.long
def test_more_than_1000_objects_through_fsspec_and_a_failing_proxy(proxy: Proxy, use_bucket: Callable[[Bucket], None]) -> None:
    use_bucket(proxy.bucket)
    files, path = fsspec.url_to_fs(proxy.bucket.url)
    proxy.bucket.write_many({f"{index:04d}": b"%d" % index for index in range(1003)})
    proxy.fail_at_random(0.1, ["503", "429", "dropped"], operations=["list", "read"])
    assert len(files.find(path)) == 1003 and len(proxy.requests("list")) >= 2
    assert len(proxy.bucket.names()) == 1003
    assert files.cat([f"{path}/{index:04d}" for index in range(100)])[f"{path}/0077"] == b"77"
    assert sum(count for kind, count in proxy.counts().items() if kind != "ok") >= 5


@pytest.mark.long
def test_large_objects_pass_in_parts(proxy: Proxy, use_bucket: Callable[[Bucket], None]) -> None:
    content = bytes(range(256)) * 50_000  # 12.8 MB
    use_bucket(proxy.bucket)
    files, path = fsspec.url_to_fs(f"{proxy.bucket.url}/big")
    files.pipe_file(path, content, chunksize=5 << 20)
    assert proxy.bucket.read("big") == content
    assert files.cat_file(path) == content
    uploads = [request.operation for request in proxy.requests(name="/big") if request.operation in ("start", "part", "write")]
    assert uploads[0] == "start" and "part" in uploads and uploads[-1] == "write"


@pytest.mark.long
def test_gcsfs_calls_its_own_object_an_existing_one_after_a_cut_answer(
    gcs_bucket: Bucket, proxied: Callable[[Bucket], Proxy], use_bucket: Callable[[Bucket], None]
) -> None:
    """A claim in a bucket must therefore be read back: the exception alone does not show who created the object."""
    proxy = proxied(gcs_bucket)
    use_bucket(proxy.bucket)
    files, path = fsspec.url_to_fs(f"{gcs_bucket.url}/claim")
    proxy.fail("cut", "write", "/claim$")
    with pytest.raises(FileExistsError):
        files.pipe_file(path, b"ours", mode="create")
    assert gcs_bucket.objects() == {"claim": b"ours"}
    assert [request.kind for request in proxy.requests("write")] == ["cut", "ok"]
