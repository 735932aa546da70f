"""A proxy on loopback in front of an emulator of a bucket, which fails on purpose. `helpers.proxy.Proxy` starts and controls it.

Run it with the port of the emulator: `python -m helpers.flaky_proxy PORT`. It prints {"port": its own port}, and then reads commands from
its standard input, one JSON object a line, and answers each with a line. It ends when its standard input is closed. Commands are not
sent by HTTP, because the proxy must also accept them while it refuses connections.
"""

import contextlib
import http.client
import json
import random
import re
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from helpers.object_requests import ObjectRequest, error_answer, in_pages, parse_request, shorten_listing

HOP_BY_HOP = ("transfer-encoding", "connection", "content-length", "expect", "keep-alive")


@dataclass
class Rule:
    """Fails `times` requests from the `nth` one on, among those of `operations` that have an object whose name matches `name`."""

    kind: str
    operations: list[str] | None = None
    name: str = ""
    nth: int = 1
    times: int | None = 1
    seconds: float = 1.0
    how: str = "refused"
    seen: int = 0

    def matches(self, request: ObjectRequest) -> bool:
        if self.operations is not None and request.operation not in self.operations:
            return False
        return any(re.search(self.name, name) for name in request.names or ("",))

    def applies(self) -> bool:
        """Counts a request that matches, and returns whether the rule applies to it."""
        self.seen += 1
        return self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)


@dataclass
class Record:
    """One line of the list of requests. `status` is None until the emulator or the proxy has answered."""

    number: int
    method: str
    target: str
    operation: str
    names: tuple[str, ...]
    kind: str
    status: int | None = None
    held: bool = False


@dataclass
class State:
    """The rules of the proxy and its list of requests. `changed` is their lock, and is notified when a held request is released."""

    rules: list[Rule] = field(default_factory=list)
    rate: Rule | None = None  # a rule for a share of the requests that match
    share: float = 0.0
    kinds: list[str] = field(default_factory=list)
    rng: random.Random = field(default_factory=random.Random)
    page: int | None = None
    away: str | None = None
    records: list[Record] = field(default_factory=list)
    releases: int = 0
    carry_out: bool = True
    changed: threading.Condition = field(default_factory=threading.Condition)

    def decide(self, request: ObjectRequest) -> tuple[str, Rule]:
        """Returns the kind of failure of a request, which is "ok" for none, and the rule that causes it."""
        if self.away:
            return ("hold" if self.away == "silent" else self.away), Rule("away")
        for rule in self.rules:
            if rule.matches(request) and rule.applies():
                return rule.kind, rule
        if self.rate is not None and self.rate.matches(request) and self.rng.random() < self.share:
            return self.rng.choice(self.kinds), self.rate
        return "ok", Rule("ok")

    def hold(self, record: Record) -> bool:
        """Waits until held requests are released, and returns whether the request, or its answer, is to be forwarded."""
        with self.changed:
            releases, record.held = self.releases, True
            self.changed.wait_for(lambda: self.releases > releases)
            record.held = False
            return self.carry_out

    def release(self, carry_out: bool) -> None:
        with self.changed:
            self.releases, self.carry_out = self.releases + 1, carry_out
            self.changed.notify_all()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that has disconnected is no error of the proxy
            super().handle_error(request, client_address)


class Front:
    """The side of the proxy that clients see: it listens on one port, and can refuse connections for a while."""

    def __init__(self, target: int):
        self.target, self.state, self.timer = target, State(), None
        self.connections: set[socket.socket] = set()
        self.server: Server | None = None
        self.port = 0
        self.lock = threading.RLock()
        self.listen()

    def listen(self) -> None:
        handler = type("Bound", (Handler,), {"front": self})
        self.server = Server(("127.0.0.1", self.port), handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def leave(self, seconds: float | None, how: str) -> None:
        """Makes the proxy unavailable: it closes the port ("refused"), holds all requests ("silent") or answers with a status."""
        with self.lock:
            self.back()
            self.state.away = how
            if how == "refused" and self.server is not None:
                self.server.shutdown()
                self.server.server_close()
                self.server = None
                for connection in list(self.connections):
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
            if seconds is not None:
                self.timer = threading.Timer(seconds, self.back)
                self.timer.daemon = True
                self.timer.start()

    def back(self) -> None:
        with self.lock:
            if self.timer is not None:
                self.timer.cancel()
            how, self.state.away, self.timer = self.state.away, None, None
            if self.server is None:
                self.listen()
            if how == "silent":
                self.state.release(carry_out=True)


class Handler(BaseHTTPRequestHandler):
    """Handles the requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    front: Front

    def log_message(self, *arguments: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.front.connections.add(self.connection)

    def finish(self) -> None:
        self.front.connections.discard(self.connection)
        super().finish()

    def handle_request(self) -> None:
        body = self.read_body()
        request = parse_request(self.command, self.path, self.headers, body)
        state = self.front.state
        with state.changed:
            kind, rule = state.decide(request)
            if kind == "refused":  # the request arrived just before the port was closed
                kind = "dropped"
            record = Record(len(state.records), self.command, self.path, request.operation, request.names, kind)
            state.records.append(record)
        if kind == "away":
            self.close_connection = True
            self.front.leave(rule.seconds, rule.how)
        elif kind == "dropped" or (kind == "hold" and not state.hold(record)):
            self.close_connection = True
        elif kind.isdigit():
            record.status = int(kind)
            content_type, answer = error_answer(int(kind), request.google)
            self.answer(int(kind), [("Content-Type", content_type)], answer)
        else:
            if kind == "slow":
                time.sleep(rule.seconds)
            self.pass_on(request, record, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = handle_request

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # the lines between the last part and the empty line are ignored
            pass
        return b"".join(parts)

    def pass_on(self, request: ObjectRequest, record: Record, body: bytes) -> None:
        """Forwards a request to the emulator and the answer to the client, except for what the kind of failure suppresses."""
        state, target, kind = self.front.state, self.path, record.kind
        if state.page is not None and request.operation == "list":
            target = in_pages(target, state.page, request.google)
        connection = http.client.HTTPConnection("127.0.0.1", self.front.target, timeout=600)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in HOP_BY_HOP}
        connection.request(self.command, target, body, headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        content, fields = answer.read(), answer.getheaders()
        connection.close()
        record.status = answer.status
        if kind == "lost" or (kind == "hold_answer" and not state.hold(record)):
            self.close_connection = True
            return
        if kind == "short" and request.operation == "list" and answer.status == 200:
            content = shorten_listing(content, request.google)
        if (
            request.operation != "read"
        ):  # the emulator writes its own address into descriptions; the contents of objects are not changed
            there, here = f"127.0.0.1:{self.front.target}", f"127.0.0.1:{self.front.port}"
            content = content.replace(there.encode(), here.encode())
            fields = [(key, value.replace(there, here)) for key, value in fields]
        self.answer(answer.status, fields, content, cut=kind == "cut")

    def answer(self, status: int, fields: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
        """Answers the client. A cut answer ends after half of its contents, or before its first byte if it has none."""
        self.close_connection |= cut
        if cut and not content:
            return
        self.send_response_only(status)
        for key, value in fields:
            if key.lower() not in HOP_BY_HOP:
                self.send_header(key, value)
        length = {key.lower(): value for key, value in fields}.get("content-length") if self.command == "HEAD" else None
        if status not in (204, 304):
            self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)


def obey(front: Front, command: dict[str, Any]) -> Any:
    """Carries out a command from the standard input, and returns its answer."""
    state, arguments = front.state, {key: value for key, value in command.items() if key != "do"}
    match command["do"]:
        case "away":
            front.leave(**arguments)
        case "back":
            front.back()
        case "release":
            state.release(**arguments)
        case "requests":
            with state.changed:
                return [asdict(record) for record in state.records]
        case "page":
            state.page = arguments["size"]
        case "rule":
            with state.changed:
                state.rules.append(Rule(**arguments))
        case "rate":
            with state.changed:
                state.share, state.kinds = arguments.pop("share"), arguments.pop("kinds")
                state.rng = random.Random(arguments.pop("seed"))
                state.rate = Rule("rate", **arguments)
        case "clear":
            with state.changed:
                state.rules, state.rate, state.page = [], None, None
        case other:
            raise ValueError(f"the proxy has no command {other!r}")


def main() -> None:
    front = Front(int(sys.argv[1]))
    print(json.dumps({"port": front.port}), flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(front, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
