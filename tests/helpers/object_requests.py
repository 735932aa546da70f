"""Describes requests to a bucket in the same words for the interfaces of Google and S3. Only the standard library is used."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

OPERATIONS = ("write", "start", "part", "read", "stat", "list", "delete", "copy", "other")
CHANGES = ("write", "start", "part", "delete", "copy")
GOOGLE = (
    "storage",
    "upload",
    "download",
    "batch",
)  # the first parts of the paths of Google's interface; the buckets of tests have other names


@dataclass(frozen=True)
class ObjectRequest:
    """The operation of a request and the names of its objects.

    `operation` is one of `OPERATIONS`. A "write" is the request that makes an object appear: the only one of a small upload, the last
    one of an upload in parts. "start" begins an upload in parts, and "part" is any of its other requests. "read" asks for contents,
    "stat" for the description alone. `names` are the objects without their bucket; a listing has its prefix as the only name.
    """

    operation: str
    names: tuple[str, ...] = ()
    google: bool = True


def parse_request(method: str, target: str, headers: Mapping[str, str], body: bytes) -> ObjectRequest:
    """Returns the description of a request. `target` is the path with its query, as in the first line of the request."""
    split = urlsplit(target)
    query = {key: values[0] for key, values in parse_qs(split.query, keep_blank_values=True).items()}
    first = split.path.lstrip("/").partition("/")[0]
    if first in GOOGLE:
        return google_request(method, split.path, query, headers, body)
    return s3_request(method, split.path, query, headers, body)


def google_request(method: str, path: str, query: dict[str, str], headers: Mapping[str, str], body: bytes) -> ObjectRequest:
    if path.startswith("/batch/"):
        names = re.findall(rb"^DELETE \S*?/o/(\S+?)(?:\?\S*)? HTTP", body, re.MULTILINE)
        return ObjectRequest("delete" if names else "other", tuple(unquote(name.decode()) for name in names))
    found = re.search(r"/b/[^/]+/o(?:/(.*))?$", path)
    if found is None:
        return ObjectRequest("other")
    name = unquote(found[1] or "")
    if path.startswith("/upload/"):
        return ObjectRequest(google_upload(method, query, headers), (query.get("name") or name_in_description(body),))
    if copied := re.search(r"/(?:rewriteTo|copyTo)/b/[^/]+/o/(.*)$", path):
        return ObjectRequest("copy", (unquote(copied[1]),))
    if name.endswith("/compose") and method == "POST":
        return ObjectRequest("copy", (name.removesuffix("/compose"),))
    if not name:
        return ObjectRequest("list" if method == "GET" else "other", (query.get("prefix", ""),))
    if method == "GET":
        return ObjectRequest("read" if query.get("alt") == "media" or path.startswith("/download/") else "stat", (name,))
    return ObjectRequest("delete" if method == "DELETE" else "other", (name,))


def google_upload(method: str, query: dict[str, str], headers: Mapping[str, str]) -> str:
    """Returns the operation of a request to the path for uploads."""
    if "upload_id" in query:
        found = re.fullmatch(r"bytes (?:\d+-(\d+)|\*)/(\d+)", headers.get("Content-Range") or "bytes */0")
        ends = found is not None and (found[1] is None or int(found[1]) + 1 == int(found[2]))
        return "write" if method in ("PUT", "POST") and ends else "part"
    return "start" if query.get("uploadType") == "resumable" else "write"


def name_in_description(body: bytes) -> str:
    """Returns the name in the JSON at the beginning of an upload, or "" if there is none."""
    found = re.search(rb'"name"\s*:\s*("(?:[^"\\]|\\.)*")', body[:4096])
    return json.loads(found[1]) if found else ""


def s3_request(method: str, path: str, query: dict[str, str], headers: Mapping[str, str], body: bytes) -> ObjectRequest:
    name = unquote(path.lstrip("/").partition("/")[2])
    if name:
        return ObjectRequest(s3_operation(method, query, headers), (name,), google=False)
    if method == "POST" and "delete" in query:
        names = re.findall(r"<Key>(.*?)</Key>", body.decode(errors="replace"))
        return ObjectRequest("delete", tuple(names), google=False)
    listing = method == "GET" and not {"location", "versioning", "policy", "acl", "uploads"} & query.keys() and path.strip("/")
    return ObjectRequest("list" if listing else "other", (query.get("prefix", ""),), google=False)


def s3_operation(method: str, query: dict[str, str], headers: Mapping[str, str]) -> str:
    """Returns the operation of a request to the path of an object."""
    if "uploads" in query:
        return "start"
    if "uploadId" in query:
        return "write" if method == "POST" else "part"
    if method == "PUT" and headers.get("x-amz-copy-source"):
        return "copy"
    return {"PUT": "write", "GET": "read", "HEAD": "stat", "DELETE": "delete"}.get(method, "other")


def error_answer(status: int, google: bool) -> tuple[str, bytes]:
    """Returns the content type and the body of an answer with an error, in the form that the clients of the interface expect."""
    code = {403: "AccessDenied", 429: "SlowDown", 503: "SlowDown"}.get(status, "InternalError")
    message = "The proxy of the tests answers so on purpose."
    if google:
        return "application/json", json.dumps({"error": {"code": status, "message": message}}).encode()
    return "application/xml", f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def shorten_listing(body: bytes, google: bool) -> bytes:
    """Returns a listing without the second half of its objects, which does not state that there are more."""
    if google:
        listing = json.loads(body)
        listing.pop("nextPageToken", None)
        items = listing.get("items") or []
        return json.dumps(listing | {"items": items[: len(items) // 2]}).encode()
    items = re.findall(rb"<Contents>.*?</Contents>", body, re.DOTALL)
    for item in items[len(items) // 2 :]:
        body = body.replace(item, b"", 1)
    body = re.sub(rb"<NextContinuationToken>.*?</NextContinuationToken>", b"", body, flags=re.DOTALL)
    return body.replace(b"<IsTruncated>true<", b"<IsTruncated>false<")


def in_pages(target: str, size: int, google: bool) -> str:
    """Returns the target of a listing with at most `size` objects in an answer, which names the next page as usual."""
    key = "maxResults" if google else "max-keys"
    path, _, query = target.partition("?")
    kept = [part for part in query.split("&") if part and part.partition("=")[0] != key]
    return f"{path}?{'&'.join([*kept, f'{key}={size}'])}"
