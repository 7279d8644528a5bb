"""Garbage collection in a long-running process."""

import gc

_OFTEN = (2000, 5, 50)
_RARELY = (20_000, 20, 50)


def spare_what_stays(*, short_pauses: bool = False) -> None:
    """Exempt every object that exists now from garbage collection. Call this once everything is imported and created.

    With Python's defaults, each full collection stops an API process for about 50 ms (`python -m
    benchmarks.place_orders`: p99 83 ms without this, 43 ms with it), and a worker for 100 to 300 ms twice a second, a
    third of its CPU time (`python -m benchmarks.outbox --only trivial`).

    With `short_pauses`, new objects are looked at after every 2,000 of them, which takes about a millisecond. This
    suits a process that makes few cycles of objects; one that makes many should look rarely.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*(_OFTEN if short_pauses else _RARELY))
