"""The rows of the log that state how a run spent its time, and their sums."""

import pytest

from swinunetr_jax.training import log, times, watchdog


def row(start: float, at: float, spent: dict[str, float], **more) -> dict:
    return {"kind": "time", "step": 0, "start": 1000 * start, "at": 1000 * at, "spent": spent, **more}


ROWS = [
    {"kind": "step", "step": 1, "loss": 1.0, "wait": 0.0, "seconds": 1.0},
    row(100, 110, {"start": 2.0, "steps": 8.0}),
    row(100, 130, {"start": 2.0, "steps": 20.0, "validation": 8.0}),
    # The process is killed, and continues 10 s after the last saved state, 4 s of which it computed steps.
    row(140, 150, {"start": 3.0, "steps": 7.0}, repeated=4),
    row(
        140,
        170,
        {"start": 3.0, "steps": 25.0, "saving": 1.0, "data": 1.0},
        repeated=4,
        finished=True,
        hosts={"0 on a": (0.5, 0.25)},
    ),
    # The finished run is extended after a day, which does not count as lost.
    row(90000, 90010, {"start": 5.0, "steps": 5.0, "another kind": 0.5}, hosts={"0 on a": (0.5, 0.25), "1 on b": (1.5, 0.5)}),
]


def test_the_times_of_all_starts_are_added_and_a_restart_costs_the_time_since_the_saved_state():
    summed = times.times_of(ROWS)
    assert {kind: seconds for kind, seconds in summed.spent.items() if seconds} == {
        **{"start": 10.0, "steps": 50.0, "validation": 8.0, "saving": 1.0, "data": 1.0, "other": 0.5}
    }
    assert (summed.lost, summed.restarts, summed.repeated, summed.total) == (10.0, 1, 4, 80.5)
    assert summed.goodput == pytest.approx(50 / 80.5)
    assert summed.table[-1] == ("lost by 1 restart, of which 4 steps had been computed", 10.0)
    assert times.sentence(summed) == (
        "time:              80 s in all: steps 62 %, start 12 %, lost by 1 restart 12 %, validation 10 %, waiting for data 1 %, "
        "saving 1 %, other 1 %; goodput 62 %"
    )
    assert summed.slowest_host == (
        "the slowest process is 1 on b: 1.500 s of waiting for data and 0.500 s of dispatch per step; the mean of all 2 is 1.000 s and "
        "0.375 s"
    )


def test_a_log_of_an_earlier_version_has_no_times():
    assert times.times_of(ROWS[:1]) is None


def test_the_log_keeps_the_times_up_to_the_saved_state_and_counts_the_steps_that_are_repeated(tmp_path):
    written = log.Log(tmp_path, step=0, total=9, batch=1)
    for step in (1, 2, 3):
        written.step(step, {"loss": 1.0, "wait": 0.0})
        written.time(step, {"start": 5, "at": 6 + step, "spent": {"steps": 1.0 * step}})
    written.close()
    resumed = log.Log(tmp_path, step=1, total=9, batch=1)
    resumed.close()
    assert resumed.repeated == 2 and [(row["kind"], row["step"]) for row in resumed.rows] == [("step", 1), ("time", 1)]
    assert log.read_rows(tmp_path)[1] == {"kind": "time", "step": 1, "start": 5, "at": 7, "spent": {"steps": 1.0}}


def test_the_time_of_a_phase_excludes_the_phases_within_it(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: 10.0 * next(clock))
    with watchdog.Watchdog(0, default_on=True, leads=True):
        with watchdog.phase(watchdog.VALIDATION), watchdog.phase(watchdog.WAITING):
            pass
        assert watchdog.spent() == {watchdog.OUTSIDE: 30.0, watchdog.VALIDATION: 40.0, watchdog.WAITING: 20.0}
    assert watchdog.spent() == {}
