"""A process of the product on a host whose clock is wrong: `python -m tests.faults.shifted FILE MODULE ARGUMENTS...`.

The file holds the number of seconds by which the clock is ahead. It may change while the process runs.
"""

import runpy
import sys
from pathlib import Path
from time import time

from services import clock

if __name__ == "__main__":
    shift = Path(sys.argv[1])
    clock.host_time = lambda: time() + float(shift.read_text())
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
