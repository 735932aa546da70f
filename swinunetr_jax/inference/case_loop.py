"""Works through many cases and records every result. While a case is computed, the next ones are read and the previous one is written.

A case therefore takes as long as its slowest stage. The memory of the cases that are read ahead is bounded; one more case is computed and
one is written. Lines are printed, and cases recorded, in the order of the cases. A case with a fault does not stop the others.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from swinunetr_jax import console
from swinunetr_jax.console import literal, name_list
from swinunetr_jax.data.check.problems import ONE_BY_ONE, problem_key
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.prediction_record import AlreadyDone, CaseEntry, InputFile, Record, input_files
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.case_files import recorded, replace_case_files

# The number of cases that are read ahead. One processor needs several times as long for reading a case as a fast device for computing it.
READERS = max(1, min(4, (os.cpu_count() or 1) // 2))
MAX_READ_AHEAD = 2 << 30  # bytes of the cases that are read ahead, if they are as large as the current one

Content = TypeVar("Content")
Result = TypeVar("Result")


class CaseWork(Protocol[Content, Result]):
    """The work on each case. `read` and `write` run in threads of their own, `compute` in the main thread."""

    @property
    def unit(self) -> str:
        """The name of what the progress counts, such as "window"."""
        ...

    def outputs(self, case: Case) -> dict[str, Path]:
        """Returns the path of each output of a case by its kind, the most important one first."""
        ...

    def read(self, case: Case) -> Content:
        """Reads the files of a case. Raises InputError if the case has a fault."""
        ...

    def memory(self, content: Content) -> int:
        """Returns the memory in bytes of what was read."""
        ...

    def compute(self, case: Case, content: Content, progress: console.Progress) -> Result:
        """Computes the result of a case. Raises InputError if the case has a fault."""
        ...

    def notes(self, result: Result) -> Sequence[str]:
        """Returns sentences for the user about a result."""
        ...

    def warnings(self, result: Result) -> Sequence[str]:
        """Returns warnings for the user about a result, which are recorded by `entry`."""
        ...

    def write(self, case: Case, result: Result, paths: Mapping[str, Path]) -> None:
        """Writes the outputs to paths by their kinds, which are temporary names."""
        ...

    def entry(self, result: Result) -> CaseEntry:
        """Returns what is recorded of a result besides its inputs, outputs, notes and seconds."""
        ...

    def summary(self, result: Result, outputs: Mapping[str, Path], seconds: float) -> list[str]:
        """Returns the lines that are printed after a case was written; the first one is followed by the remaining time."""
        ...


def run_cases(work: CaseWork[Content, Result], record: Record, cases: Sequence[Case], *, overwrite: bool = False) -> list[str]:
    """Works through all cases and returns the names of those that failed.

    Args:
        work: the work on each case.
        record: the record of the output folder. Cases that it lists as done under the same settings are skipped.
        cases: the cases.
        overwrite: compute finished cases again, and replace files that are not recorded.
    """
    return _CaseLoop(work, record, cases, overwrite).run()


@dataclass(frozen=True)
class _Read(Generic[Content]):
    """A case that was read: its content, its files as they were before, and the seconds that reading took."""

    content: Content
    inputs: list[InputFile]
    seconds: float


class _CaseLoop(Generic[Content, Result]):
    def __init__(self, work: CaseWork[Content, Result], record: Record, cases: Sequence[Case], overwrite: bool):
        self.work, self.record, self.cases, self.overwrite = work, record, cases, overwrite
        self.failed: list[str] = []
        self.cases_by_fault: dict[str, list[str]] = {}  # a fault that hundreds of cases share is not printed for each of them
        self.reading: dict[int, Future[_Read[Content]]] = {}  # the cases that are read ahead, by their indices
        self.writing: Future[None] | None = None
        self.intervals: list[float] = []  # the time between the ends of computed cases
        self.last_end = time.perf_counter()
        self.owners: dict[Path, str] = {}  # the first case that writes a path
        for case in cases:
            for path in work.outputs(case).values():
                self.owners.setdefault(path, case.name)

    def run(self) -> list[str]:
        # If the user interrupts the work, leaving the block waits for the case that is being written, so that it is not lost.
        with ThreadPoolExecutor(READERS, "read") as self.reader, ThreadPoolExecutor(1, "write") as self.writer:
            for index, case in enumerate(self.cases):
                self._run_case(index, case)
            self._wait_for_writing()
        for names in self.cases_by_fault.values():
            if len(names) > ONE_BY_ONE:
                console.say(
                    f"{len(names)} cases FAILED for the same reason as {literal(names[0])}: {literal(name_list(names))}",
                    sys.stderr,
                )
        return self.failed

    def _run_case(self, index: int, case: Case) -> None:
        outputs = self.work.outputs(case)
        if self._is_done(case):
            self.reading.pop(index, None)  # another run has finished it in the meantime
            self._wait_for_writing()
            console.say(f"{self._title(index)}: done already, skipped")
            return
        try:
            self._check_distinct(case, outputs)
            self.record.check_free(case, outputs, self.overwrite)
            read = self._content(index)
            self._read_ahead(index + 1, read)
            started = time.perf_counter()
            with console.Progress(self._title(index), unit=self.work.unit) as progress:
                result = self.work.compute(case, read.content, progress)
            computing = time.perf_counter() - started
        except InputError as error:
            self._wait_for_writing()
            self._fail(index, error)
            return
        self._wait_for_writing()
        for note in self.work.notes(result):
            console.say(f"{self._title(index)}: note: {literal(note)}")
        times = (read.seconds, computing)
        for warning in self.work.warnings(result):
            console.warn(f"{self._title(index)}: {literal(warning)}")
        self.writing = self.writer.submit(self._write, index, result, outputs, read.inputs, times)

    def _title(self, index: int) -> str:
        return f"[{index + 1}/{len(self.cases)}] {literal(self.cases[index].name)}"

    def _is_done(self, case: Case) -> bool:
        """Returns whether an earlier run has finished a case; the record then knows the state of the case before this run."""
        self.record.begin(case)
        return not self.overwrite and self.record.is_done(case, self.work.outputs(case))

    def _check_distinct(self, case: Case, outputs: Mapping[str, Path]) -> None:
        """Raises InputError if an earlier case writes the same file, for example the cases `a` and `a_probabilities`."""
        for path in outputs.values():
            if self.owners[path] != case.name:
                raise InputError(
                    f"{path} is also a result of the case {self.owners[path]}; rename one, or write them into two folders."
                )

    def _content(self, index: int) -> _Read[Content]:
        """Returns what was read of a case, or reads it now."""
        ahead = self.reading.pop(index, None)
        return self._read(index) if ahead is None else ahead.result()

    def _read(self, index: int) -> _Read[Content]:
        started, inputs = time.perf_counter(), input_files(self.cases[index])
        content = self.work.read(self.cases[index])
        return _Read(content, inputs, time.perf_counter() - started)

    def _read_ahead(self, index: int, current: _Read[Content]) -> None:
        """Starts to read the first cases from `index` on that are not done, as many as fit into memory."""
        most = min(READERS, MAX_READ_AHEAD // max(self.work.memory(current.content), 1))
        for upcoming in range(index, len(self.cases)):
            if len(self.reading) >= most:
                return
            if upcoming not in self.reading and not self._is_done(self.cases[upcoming]):
                self.reading[upcoming] = self.reader.submit(self._read, upcoming)

    def _wait_for_writing(self) -> None:
        """Waits until the previous case is written, so that memory is bounded and lines are in the order of the cases."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def _write(
        self, index: int, result: Result, outputs: dict[str, Path], inputs: list[InputFile], times: tuple[float, float]
    ) -> None:
        """Writes and records all outputs of a case, or none of them, and prints its summary.

        `times` are the seconds of reading and computing the case.
        """
        case, (reading, computing), started = self.cases[index], times, time.perf_counter()
        try:
            for before, now in zip(inputs, input_files(case)):
                if now["bytes"] is not None and now != before:  # a DICOM-SEG would otherwise get the patient of another scan
                    raise InputError(f"{before['path']}: was changed while it was being processed; repeat the command.")
            files = replace_case_files(
                self.record, case, outputs, self.overwrite, lambda paths: self.work.write(case, result, paths)
            )
            with files as finish:
                writing = time.perf_counter() - started
                seconds = round(reading + computing + writing, 2)
                entry = CaseEntry(inputs=inputs, outputs=recorded(outputs), notes=list(self.work.notes(result)), seconds=seconds)
                finish({**entry, **self.work.entry(result)})
        except AlreadyDone:
            console.say(
                f"{self._title(index)}: another run has finished it in the meantime with the same settings, and its result is kept"
            )
            return
        except InputError as error:
            self._fail(index, error)
            return
        first, *lines = self.work.summary(result, outputs, seconds)
        console.say(f"{self._title(index)}: {first}{self._remaining_time(index)}")
        console.detail(f"{self._title(index)}: reading {reading:.1f} s, computing {computing:.1f} s, writing {writing:.1f} s")
        for line in lines:
            console.say(f"{self._title(index)}: {line}")
        if older := [output["path"] for output in self.record.older_outputs(case)]:
            verbs = "is kept, but does" if len(older) == 1 else "are kept, but do"
            names = literal(", ".join(older))
            console.say(f"{self._title(index)}: note: {names} of an earlier run {verbs} not belong to this result")

    def _fail(self, index: int, error: InputError) -> None:
        """Records that a case failed and prints why."""
        case = self.cases[index]
        stale = self.record.fail(case, str(error))
        older = f" (an older result is kept: {', '.join(output['path'] for output in stale.values())})" if stale else ""
        names = self.cases_by_fault.setdefault(problem_key(case.name, str(error)), [])
        names.append(case.name)
        if len(names) <= ONE_BY_ONE or older:
            console.say(f"{self._title(index)}: FAILED: {literal(error)}{literal(older)}", sys.stderr)
        self.failed.append(case.name)

    def _remaining_time(self, index: int) -> str:
        """Returns text with the estimated time of the remaining cases.

        The time until the end of the first case includes compilation, so it is used only as long as there is no other.
        """
        now = time.perf_counter()
        self.intervals.append(now - self.last_end)
        self.last_end = now
        if not (cases := len(self.cases) - index - 1):
            return ""
        counted = self.intervals[1:] or self.intervals
        remaining = console.duration(cases * sum(counted) / len(counted))
        return f"; {cases} case{'s' * (cases != 1)} remaining, about {remaining}"
