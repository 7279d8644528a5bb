"""The garbage collector of a process that lives long."""

import gc


def spare_what_stays() -> None:
    """Call it when everything is imported and made: what is there now stays, and no collection need walk it.

    With Python's defaults each full one stops an API process for some 50 ms (`python -m benchmarks.place_orders`: p99
    83 ms without, 43 with it) and a worker for 100 to 300 ms; there they come twice a second, a third of its CPU time
    (`python -m benchmarks.outbox --only trivial`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
