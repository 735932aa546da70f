"""Set-up of all tests: they use JAX on the CPU with the highest matrix precision, and no compiled programs of earlier runs.

It also provides MONAI networks to compare with.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("helpers")  # this must happen before any helper is imported

# This is set before jax is imported. To test on a GPU, run: JAX_PLATFORMS=cuda,cpu pytest -m accelerator
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # gcsfs reads it when it is imported; see helpers/buckets.py

from helpers.compile_effort import OPTIMIZED, set_least_effort  # noqa: E402

if os.environ["JAX_PLATFORMS"] == "cpu":
    set_least_effort()

import jax  # noqa: E402
import numpy as np  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # tools/ is not installed

from helpers.buckets import Bucket, Emulator, clear_instances, fresh_bucket, use_environment  # noqa: E402
from helpers.proxy import Proxy  # noqa: E402
from helpers.runner import Runner  # noqa: E402
from helpers.small_network import forget, replace_swin_unetr  # noqa: E402

from swinunetr_jax import SwinUNETR, SwinUNETRConfig, open_checkpoint  # noqa: E402
from swinunetr_jax.data.discovery.cases import Case  # noqa: E402
from swinunetr_jax.data.prepare import write_case  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")
# Tracing creates many long-lived objects. With the default thresholds, a tenth of the time is spent on collecting garbage among them.
gc.set_threshold(100_000, 20, 50)


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replaces Swin UNETR by a network of three layers, for tests that hold for any network."""
    replace_swin_unetr(monkeypatch)
    yield
    monkeypatch.undo()
    forget()


LONGEST = (
    "test_transformations_traced",  # its checks of leaks take longer after other tests, whose objects they search
    "test_processes",
    "test_extend",
    "test_train",
    "test_faults",
    "test_parity",
    "test_parallel",
    "test_goldens",
    "test_train_step",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the files that take longest first, so that no worker is still busy with one of them when the others have finished."""
    rank = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Runs the tests of a file in one process if `-n` is given, so that its fixtures are made once.

    The rows of the table of transformations share little and take minutes together, so they are divided among the processes.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "test_transformations.py::" in nodeid else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for compiled programs, new for each session of tests and shared by its workers and the processes that they start.

    A program that one test has compiled is not compiled again, and no test uses a program that another version compiled.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "programs"
    folder.mkdir(exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real scans: `SWINUNETR_TEST_DATA`, or ../shared/data next to the repository."""
    path = Path(os.environ.get("SWINUNETR_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real scans in {path}: set SWINUNETR_TEST_DATA")
    return path


@pytest.fixture(scope="session")
def run_forward() -> Callable[..., dict[str, np.ndarray]]:
    """A function (model, x, **options) -> all intermediates of `forward` by name, including the logits."""

    def run(model: SwinUNETR, x: np.ndarray, *, optimize: bool = False, **options: Any) -> dict[str, np.ndarray]:
        compiler_options = OPTIMIZED if optimize else None
        intermediates = jax.jit(lambda model, x: model.forward(x, **options)[1], compiler_options=compiler_options)(model, x)
        return {name: np.asarray(value) for name, value in intermediates.items()}

    return run


@dataclass(frozen=True)
class Pair:
    """A MONAI network with random weights, and the file that it was saved to."""

    config: SwinUNETRConfig
    theirs: Any
    path: Path

    def ours(self, **changes: Any) -> SwinUNETR:
        """Returns our network, read from that file by `open_checkpoint`; `changes` replace fields such as `dtype`."""
        fields = {"downsample": self.config.downsample, "normalize": self.config.normalize, **changes}
        if self.config.num_groups is not None:
            fields["num_groups"] = self.config.num_groups
        checkpoint = open_checkpoint(self.path, **fields)
        assert checkpoint.config == self.config.replace(**changes)  # the other fields were inferred from the tensors
        assert not checkpoint.report.initialized and not checkpoint.report.ignored and not checkpoint.report.adapted
        return checkpoint.model()


@pytest.fixture(scope="session")
def monai_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """A function that returns MONAI's network for configuration fields, with weights unlike the initial ones, saved by torch."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("monai")
    from tools import reference

    def make(seed: int = 0, **fields: Any) -> Pair:
        net = reference.network(fields)
        reference.fill(net, seed)
        path = tmp_path_factory.mktemp("monai") / "network.pt"
        torch.save({"epoch": 1, "state_dict": net.state_dict()}, path)
        return Pair(SwinUNETRConfig(**fields), net, path)

    return make


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[Runner]:
    """Starts the trainer in separate processes, in a folder of the module, and ends those that still run after a failed test."""
    runner = Runner(tmp_path_factory.mktemp("runs"), programs)
    yield runner
    for process in runner.started:
        process.kill()


@pytest.fixture(scope="session")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Emulator]]:
    """Returns a function that returns the emulator "gcs" or "s3", and starts it at the first call in this process."""
    started: dict[str, Emulator] = {}

    def emulator(kind: str) -> Emulator:
        if kind not in started:
            started[kind] = Emulator(kind, tmp_path_factory.mktemp("emulators"))
        return started[kind]

    yield emulator
    for one in started.values():
        one.stop()


@pytest.fixture
def gcs_bucket(emulators: Callable[[str], Emulator], request: pytest.FixtureRequest) -> Bucket:
    """Returns an empty folder of a bucket of Google Cloud Storage for one test."""
    return fresh_bucket(emulators("gcs"), request.node.name)


@pytest.fixture
def s3_bucket(emulators: Callable[[str], Emulator], request: pytest.FixtureRequest) -> Bucket:
    """Returns an empty folder of a bucket of S3 for one test. Its server starts more slowly, so default tests use `gcs_bucket`."""
    return fresh_bucket(emulators("s3"), request.node.name)


@pytest.fixture(params=["gcs", pytest.param("s3", marks=pytest.mark.long)])
def bucket(emulators: Callable[[str], Emulator], request: pytest.FixtureRequest) -> Bucket:
    """Returns an empty folder of a bucket. A test runs with Google Cloud Storage and, among the long tests, also with S3."""
    return fresh_bucket(emulators(request.param), request.node.name)


@pytest.fixture
def proxied() -> Iterator[Callable[[Bucket], Proxy]]:
    """Returns a function that starts a proxy in front of a bucket, which fails on purpose. The proxies end with the test."""
    started: list[Proxy] = []

    def start(bucket: Bucket) -> Proxy:
        started.append(Proxy(bucket))
        return started[-1]

    yield start
    for proxy in started:
        proxy.stop()


@pytest.fixture
def use_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Bucket], None]]:
    """Returns a function that connects this process to a bucket, or to that of a proxy, at its URL until the test ends."""
    yield lambda bucket: use_environment(monkeypatch, bucket.environment)
    clear_instances()


@pytest.fixture
def fresh_traces() -> Iterator[None]:
    """Clears the caches of traced functions before and after a test that changes what a function traces to."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def names_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the cases that are read from their files while training cases are prepared."""
    names: list[str] = []
    read = write_case.read_case

    def record(case: Case, *rest: Any) -> Any:
        names.append(case.name)
        return read(case, *rest)

    monkeypatch.setattr(write_case, "read_case", record)
    return names


@pytest.fixture
def nothing_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fails a test that prints anything, because errors are reported by exceptions only, and nibabel must not log anything."""
    yield
    assert capfd.readouterr() == ("", "")
