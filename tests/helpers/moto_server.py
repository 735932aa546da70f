"""The S3 of moto as a server that carries out one request at a time. Run it as a program with a port: python moto_server.py PORT

Moto looks whether an object exists and writes it in two steps. With a thread for each request, as in `python -m moto.server`, two requests
that both ask for "create if there is none" at the same moment could both succeed, which S3 itself excludes.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def one_at_a_time(application: Application) -> Application:
    """Returns an application that first reads each request completely, so that a client that stops in the middle does not block others."""
    lock = threading.Lock()

    def run(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        stream, length = environ["wsgi.input"], environ.get("CONTENT_LENGTH")
        body = stream.read(int(length)) if length else stream.read() if environ.get("wsgi.input_terminated") else b""
        changed = environ | {"wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        with lock:
            return [b"".join(application(changed, start_response))]

    return run


if __name__ == "__main__":
    application = one_at_a_time(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=MotoRequestHandler)
    print("server started", file=sys.stderr, flush=True)
    server.serve_forever()
