"""A Hugging Face hub on loopback: the requests with which its client lists and downloads the files of one repository."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_server(
    repository: str, files: Mapping[str, bytes], *, failure: tuple[int, str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serves the files of a repository by name.

    Args:
        repository: its owner and name; any other one does not exist.
        files: the contents.
        failure: the status and the hub's code of the error with which downloads are refused, such as (403, "GatedRepo").

    Yields:
        The address of the server, and the paths of all downloads so far.
    """
    downloads: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            api = f"/api/models/{repository}"
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                self.send(
                    json.dumps({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}).encode()
                )
            elif path.startswith(f"{api}/revision/"):
                self.send(b"{}", status=404, headers={"X-Error-Code": "RevisionNotFound"})
            elif path.startswith(f"{api}/tree/"):
                if not path.endswith(("/main", f"/{COMMIT}")):
                    return self.send(b"{}", status=404, headers={"X-Error-Code": "RevisionNotFound"})
                entries = [{"type": "file", "path": n, "size": len(c), "oid": digest(c)} for n, c in files.items()]
                self.send(json.dumps(entries).encode())
            elif path.startswith(f"/{repository}/resolve/") and (name := path.split("/", 5)[5]) in files:
                if failure is not None:
                    return self.send(b"{}", status=failure[0], headers={"X-Error-Code": failure[1]})
                if self.command == "GET":
                    downloads.append(name)
                self.send(files[name], headers={"ETag": f'"{digest(files[name])}"', "X-Repo-Commit": COMMIT})
            else:
                self.send(b"{}", status=401, headers={"X-Error-Code": "RepoNotFound"})
            return None

        def send(self, content: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", downloads
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
