"""An endless stream of batches of training examples. Sample number n is the same for any number of workers and processes.

Global batch b holds samples b·batch … (b + 1)·batch − 1, and the shares of all processes, in the order of their numbers, form this
batch. All randomness of a sample comes from the seed and the sample's number, so that the only state is the number of the next batch.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from swinunetr_jax.data.augment.transforms import Transform
from swinunetr_jax.data.prepare.intensity import zscore_terms
from swinunetr_jax.data.prepare.prepared_case import PreparedCase
from swinunetr_jax.errors import InputError

AHEAD = 2  # a worker prepares at most this number of batches in advance
Batch = dict[str, np.ndarray]
"""image float32 [b, x, y, z, c], label uint8 [b, x, y, z], case and sample int32 [b]; if `raw`, the image has the data type of the cache,
and statistics, float32 [b, 3, c], are the `zscore_terms` of the cases."""


class SampleError(RuntimeError):
    """A sample could not be prepared because of an unexpected exception."""


class TrainingData:
    """The endless iterator over this process's share of the batches; `close` stops the workers.

    Args:
        cases: the training cases; a batch's 'case' holds indices into this list, and its 'sample' the samples' numbers.
        transforms: applied in this order to each `PreparedCase.example()`; they must return arrays of one shape.
        batch: the number of samples in a step, over all processes.
        seed: the seed of the order of cases and of every transform.
        workers: the number of processes that prepare batches in advance; with 0, a thread of this process does.
        samples_per_case: how often each case is used before all are shuffled again.
        process, processes: the number of this process's share of each batch, and the number of shares. Share 0 has the first samples.
        raw: whether the transforms do not normalise, so that images keep their data type and the batch holds the statistics of the cases.

    Raises:
        InputError: an argument is out of range; from `next` also if a sample holds NaN or Inf. `next` raises SampleError for any other
            failure. Both errors name the case, or the cases that a worker may have been preparing when it was killed.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        transforms: Sequence[Transform],
        *,
        batch: int,
        seed: int,
        workers: int = 0,
        samples_per_case: int = 1,
        process: int = 0,
        processes: int = 1,
        raw: bool = False,
    ):
        if not cases:
            raise InputError("there are no cases to train on; give one or more.")
        if batch < 1 or processes < 1 or batch % processes:
            raise InputError(f"a batch of {batch} cannot be shared by {processes} processes; choose a multiple of their number.")
        if not 0 <= process < processes:
            raise InputError(f"`process` must be 0 … {processes - 1}, got {process}.")
        if workers < 0 or samples_per_case < 1 or not 0 <= seed < 2**32:
            raise InputError(
                "`workers` must be 0 or more, `samples_per_case` 1 or more and `seed` within 32 bits, got "
                f"{workers}, {samples_per_case} and {seed}."
            )
        self.cases, self.workers = tuple(cases), workers
        self.batch, self.process, self.processes = batch, process, processes
        count = len(self.cases)
        shuffled = grain.MapDataset.range(count * samples_per_case).seed(seed).shuffle().repeat()
        self._order = shuffled.map_with_index(lambda number, position: (number, position % count))  # the sample's number and case
        samples = self._order.random_map(_Sampler(self.cases, tuple(transforms), raw))
        self._batches = samples.batch(batch // processes, drop_remainder=True, batch_fn=_collate)
        self._step = 0
        self._iterator: grain.DatasetIterator[Batch] | None = None

    def __iter__(self) -> "TrainingData":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._start()
        try:
            batch = next(self._iterator)
        except (InputError, SampleError):
            self.close()
            raise
        except Exception as error:
            self.close()
            # While this batch has not been received, the workers may already be preparing later ones.
            steps = range(self._step, self._step + (1 + AHEAD) * (self.workers or 1), self.workers or 1)
            names = ", ".join(dict.fromkeys(self.cases[index].name for step in steps for index in self.upcoming(step)))
            raise SampleError(
                f"batch {self._step} or one soon after it (cases: {names}) could not be prepared ({error}); if a worker was killed, the "
                "memory, or the shared memory in /dev/shm, was probably exhausted: use fewer workers."
            ) from error
        self._step += 1
        return batch

    def upcoming(self, step: int | None = None) -> list[int]:
        """Returns the indices of the cases in this process's share of a batch, by default the next one."""
        share = self.batch // self.processes
        first = (self._step if step is None else step) * self.batch + self.process * share
        return [self._case(n) for n in range(first, first + share)]

    def names(self) -> list[str]:
        """Returns the names of the cases in the next batch, over all processes."""
        first = self._step * self.batch
        return [self.cases[self._case(n)].name for n in range(first, first + self.batch)]

    def get_state(self) -> dict[str, int]:
        """Returns the state for `set_state` of a pipeline with the same cases, transforms, batch size and seed."""
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues with batch `state["step"]`, discarding batches that were prepared in advance."""
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Stops the workers; `next` starts them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __del__(self) -> None:
        if hasattr(self, "_iterator"):
            self.close()

    def _case(self, number: int) -> int:
        """Returns the index of the case of a sample."""
        element = self._order[number]
        assert element is not None  # the order is not filtered
        return element[1]

    def _start(self) -> grain.DatasetIterator[Batch]:
        # The share of process p in global batch b is batch number b·processes + p of the smaller batches.
        batches = self._batches[self._step * self.processes + self.process :: self.processes]
        dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        if self.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads its flags, which only absl's own main function parses
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=1), worker_init_fn=_belong_to_parent
            )
        return iter(dataset)


def _belong_to_parent(*_: int) -> None:
    """Makes a worker end when its parent ends and ignore signals, because a scheduler signals all processes of a job at once."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)

    def exit_after_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None  # a worker is not the main process
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_after_parent, daemon=True).start()


class _Sampler:
    """Maps the number of a sample and the index of its case to the sample."""

    def __init__(self, cases: tuple[PreparedCase, ...], transforms: tuple[Transform, ...], raw: bool):
        self.cases, self.transforms, self.raw = cases, transforms, raw

    def __call__(self, element: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
        number, index = element
        case = self.cases[index]
        try:
            example = {**case.example(), "sample": number}
            for transform in self.transforms:
                example = transform(example, rng)
            image = example["image"]
            with np.errstate(all="ignore"):
                total = image.sum(dtype=np.float32)  # faster than testing each voxel; it is not finite if any voxel is not
            if not np.isfinite(total) and not np.isfinite(image).all():
                raise InputError("the sample holds NaN or Inf; check the image and the transforms.")
        except InputError as error:
            raise InputError(f"{case.name}: {error}") from error
        except Exception as error:
            raise SampleError(f"{case.name}: {type(error).__name__}: {error}") from error
        sample = {"image": image, "label": example["label"], "case": index, "sample": number}
        return sample | {"statistics": np.stack(zscore_terms(case.statistics))} if self.raw else sample


def _collate(samples: Sequence[dict[str, Any]]) -> Batch:
    """Returns a batch of samples, which may be views, in contiguous memory."""
    raw = "statistics" in samples[0]
    batch = {
        "image": np.stack([sample["image"] for sample in samples], dtype=None if raw else np.float32),
        "label": np.stack([sample["label"] for sample in samples], dtype=np.uint8),
        "case": np.array([sample["case"] for sample in samples], np.int32),
        "sample": np.array([sample["sample"] for sample in samples]).astype(np.int32),
    }
    return batch | {"statistics": np.stack([sample["statistics"] for sample in samples])} if raw else batch
