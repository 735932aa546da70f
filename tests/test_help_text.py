"""Help texts name the kinds of values in the usual notation."""

from swinunetr_jax.arguments.help_text import readable

TYRO = """\
usage: program [-h] [OPTIONS]

  -h, --help          show this help message and exit
  -i [PATH [PATH ...]], --input [PATH [PATH ...]]
                      Scans. (required)
  --roi {None}|{INT INT INT}
                      The size. (default:
                      None)
  --out {None}|PATH   A folder with {None}|PATH in its name. (default: None)
  --cut {None}|FLOAT  The largest norm. (default: 1.0)
  --size {None}|{INT INT INT}
                      The size. (default: 1 2 3)
  --on [{cpu,tpu} [{cpu,tpu} ...]]
                      Platforms. (default: cpu)
  --precision {None,float32,bfloat16}
                      The precision. (default: None)
  --sizes {None}|{[INT [INT ...]]}
                      Sizes. (default: None)
"""
EXPECTED = """\
usage: program [-h] [OPTIONS]

  -h, --help          show this help message and exit
  -i PATH [PATH ...], --input PATH [PATH ...]
                      Scans. (required)
  --roi INT INT INT
                      The size. (default:
                      None)
  --out PATH          A folder with {None}|PATH in its name. (default: None)
  --cut FLOAT or None  The largest norm. (default: 1.0)
  --size INT INT INT or None
                      The size. (default: 1 2 3)
  --on {cpu,tpu} [{cpu,tpu} ...]
                      Platforms. (default: cpu)
  --precision {float32,bfloat16}
                      The precision. (default: None)
  --sizes INT [INT ...]
                      Sizes. (default: None)
"""


def test_kinds_of_values_are_in_the_usual_notation():
    assert readable(TYRO) == EXPECTED
    assert readable(EXPECTED) == EXPECTED
