"""Runs sweeps in turn, with a commit for each slice, so that no sweep delays another."""

import logging
from collections.abc import Sequence
from time import monotonic
from typing import Any, Generic

from services.outbox.policy import is_contention
from services.sweeps.service import DueT, Refused, Sweep, take_slice
from services.unit_of_work import OpenUnitOfWork, background

logger = logging.getLogger(__name__)

LONGEST = 50.0
"""Seconds after which a run stops; the next one continues. Sweeps run every minute."""

_NAMED = 20
"""The most rows that one log message lists."""


class _Run(Generic[DueT]):
    """One sweep, from its first slice to its last."""

    def __init__(self, sweep: Sweep[DueT]) -> None:
        self.sweep = sweep
        self.ended = 0
        self.goes_on = True
        self.error: Exception | None = None
        self._last: DueT | None = None
        self._refused: list[Refused] = []

    async def take(self, open_unit_of_work: OpenUnitOfWork, slice_size: int) -> None:
        try:
            async with background(open_unit_of_work) as uow:
                taken = await take_slice(uow, self.sweep, self._last, slice_size)
        except Exception as error:  # noqa: BLE001
            # Whatever the error, the other sweeps continue; it is raised when they are done.
            self.goes_on = False
            if is_contention(error):
                logger.warning(
                    "sweep skipped: a lock was not granted in time",
                    extra={"sweep": self.sweep.name, "error": error},
                )
            else:
                self.error = error
            return
        self.ended += taken.ended
        self._refused += taken.refused
        self._last, self.goes_on = taken.last, taken.last is not None

    def report(self) -> None:
        """Log one message for all rows that failed in this run, and one for the error that ended it."""
        if self._refused:
            logger.error(
                "rows left out of a sweep: the database refuses to end them",
                extra={
                    "sweep": self.sweep.name,
                    "rows": len(self._refused),
                    "named": [
                        {"subject": one.subject, "attempts": one.attempts, "error": one.error}
                        for one in self._refused[:_NAMED]
                    ],
                },
            )
        if self.error is not None:
            logger.error("sweep ended early", extra={"sweep": self.sweep.name, "error": repr(self.error)})


async def run_sweeps(
    open_unit_of_work: OpenUnitOfWork, sweeps: Sequence[Sweep[Any]], *, slice_size: int, longest: float = LONGEST
) -> dict[str, int]:
    """Process the sweeps in turn, slice by slice, until nothing is due; returns the number of ended rows by sweep.

    Stops after `longest` seconds; the next run continues. If an error ends a sweep early, it is raised after all others
    are done; several errors are raised as an `ExceptionGroup`.
    """
    runs = [_Run(sweep) for sweep in sweeps]
    until = monotonic() + longest
    try:
        while going := [run for run in runs if run.goes_on]:
            for run in going:
                await run.take(open_unit_of_work, slice_size)
            if monotonic() >= until:
                break
    finally:
        for run in runs:
            run.report()
    raise_all([run.error for run in runs if run.error is not None], "several sweeps ended early")
    return {run.sweep.name: run.ended for run in runs}


def raise_all(errors: Sequence[Exception], message: str) -> None:
    """Raise the error, or several as a group; do nothing if there is none."""
    if len(errors) > 1:
        raise ExceptionGroup(message, errors)
    for error in errors:
        raise error
