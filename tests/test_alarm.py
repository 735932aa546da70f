"""XLA's alarm about slow compilation is taken out of stderr, and nothing else is."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swinunetr_jax.alarm import Filter, quiet_compilation, without_alarm

STARS = "*" * 32
PROGRAM = f"""E1126 22:12:12.141381    8099 slow_operation_alarm.cc:73]{" "}
{STARS}
[Compiling module jit_flagged] Very slow compile? If you want to file a bug, run with envvar XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.
{STARS}
"""  # noqa: E501 - as XLA prints it
END = PROGRAM.replace("cc:73] \n", "cc:140] The operation took 2m31.4s\n\n")
CONSTANT = """E1126 22:12:12.141381    8099 slow_operation_alarm.cc:73] Constant folding an instruction is taking > 1s:

  %reduce_window_sum.7 = f32[4000,4000]{1,0} reduce-window(%iota.3, %constant.1), window={size=31x31}

This isn't necessarily a bug; constant-folding is inherently a trade-off between compilation time and speed at runtime.

If you'd like to file a bug, run with envvar XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.
"""
OTHERS = [
    "step 1/4  loss 0.5\n",
    "E1126 22:12:12.1 8099 cuda_dnn.cc:1] an error\n",
    f"{STARS}\n",
    "\rprogress 3 %",
    "\n",
    "warning: x\n",
]


@pytest.mark.fault("3.8")
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_the_alarm_is_dropped_and_all_else_is_kept(size):
    parts = [OTHERS[0], PROGRAM, OTHERS[1], END, OTHERS[2], CONSTANT, CONSTANT, *OTHERS[3:], PROGRAM]
    text, stderr_filter = "".join(parts).encode(), Filter()
    passed = (
        b"".join(stderr_filter.passed(text[start : start + size]) for start in range(0, len(text), size)) + stderr_filter.rest
    )
    assert passed.decode() == "".join(OTHERS)


def test_a_line_without_an_end_is_written_at_once():
    assert Filter().passed(b"\r 3 %") == b"\r 3 %"


@pytest.mark.fault("3.8")
def test_stderr_is_filtered_while_something_compiles_and_only_then(capfd):
    def traced(x, y):
        os.write(2, (PROGRAM + "traced\n").encode())
        return x + y

    function = quiet_compilation(jax.jit(traced))
    for size in (1, 1, 2):  # the second call does not compile
        np.testing.assert_array_equal(function(jnp.ones(size), jnp.ones(size)), np.full(size, 2))
    assert capfd.readouterr().err == "traced\ntraced\n"
    with pytest.raises(ValueError, match="as it is"), without_alarm():
        raise ValueError("as it is")
    os.write(2, PROGRAM.encode())
    assert capfd.readouterr().err == PROGRAM
