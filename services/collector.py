"""Garbage collection in a long-running process."""

import gc


def spare_what_stays() -> None:
    """Exempt every object that exists now from garbage collection. Call this once everything is imported and created.

    With Python's defaults, each full collection stops an API process for about 50 ms (`python -m
    benchmarks.place_orders`: p99 83 ms without this, 43 ms with it), and a worker for 100 to 300 ms twice a second, a
    third of its CPU time (`python -m benchmarks.outbox --only trivial`).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
