"""Names the objects of a training run in a bucket. They differ from those of a local run where two processes could write the same object.

RUN/claims/000003                              the claim of the third start of the run; the highest number owns the run
RUN/checkpoints/00000100-000003/…              the state of step 100, saved under claim 3; it counts only if it has its training.json
RUN/checkpoints/00000100-000003/damaged.json   marks a state that was read and found damaged; it is not used again
RUN/log-000003.jsonl                           the complete log, written by the owner of claim 3
RUN/best/, RUN/run.json, …                     as in a local run
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

STATES, CLAIMS, BEST = "checkpoints", "claims", "best"
COMMIT, DAMAGED = "training.json", "damaged.json"
_STATE = re.compile(rf"{STATES}/(?P<step>\d{{8}})-(?P<claim>\d{{6}})/(?P<file>.+)")
_CLAIM = re.compile(rf"{CLAIMS}/(\d{{6}})")
_LOG = re.compile(r"log-(\d{6})\.jsonl")


@dataclass(frozen=True, order=True)
class StoredState:
    """A saved state in a bucket. States are ordered by claim and then by step, so that the last one is the newest."""

    claim: int
    step: int

    @property
    def name(self) -> str:
        """The name below RUN."""
        return f"{STATES}/{self.step:08d}-{self.claim:06d}"


def states(names: Iterable[str]) -> dict[StoredState, set[str]]:
    """Returns all states among the names of a run's objects, including incomplete and damaged ones, each with the names of its files."""
    found: dict[StoredState, set[str]] = {}
    for name in names:
        if match := _STATE.fullmatch(name):
            found.setdefault(StoredState(int(match["claim"]), int(match["step"])), set()).add(match["file"])
    return found


def usable_states(names: Iterable[str]) -> list[StoredState]:
    """Returns the complete states that are not marked as damaged, newest first.

    A later claim continued from a state of an earlier one and repeated the steps after it. The earlier claim's states of these steps are
    not returned.
    """
    chosen: list[StoredState] = []
    for state, files in sorted(states(names).items(), reverse=True):
        if COMMIT in files and DAMAGED not in files and (not chosen or state.step < chosen[-1].step):
            chosen.append(state)
    return chosen


def claim_name(number: int) -> str:
    """Returns the name of a claim."""
    return f"{CLAIMS}/{number:06d}"


def highest_claim(names: Iterable[str]) -> int:
    """Returns the highest number of a claim among the names of a run's objects, or 0."""
    return max((int(match[1]) for name in names if (match := _CLAIM.fullmatch(name))), default=0)


def next_claim(names: Iterable[str]) -> int:
    """Returns the number of the next claim, which is above those of all claims, states and logs among the names of a run's objects."""
    names = list(names)
    numbers = [highest_claim(names), *(state.claim for state in states(names))]
    return 1 + max(numbers + [int(match[1]) for name in names if (match := _LOG.fullmatch(name))])


def log_name(claim: int) -> str:
    """Returns the name of the log of a claim."""
    return f"log-{claim:06d}.jsonl"


def logs(names: Iterable[str]) -> list[str]:
    """Returns the names of the logs among the names of a run's objects, newest first."""
    return sorted((name for name in names if _LOG.fullmatch(name)), reverse=True)
