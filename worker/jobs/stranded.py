"""Scheduled repair of the outbox: wake events that sleep although nothing is left to wake them."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from services.sweeps.service import Sweep
from services.unit_of_work import UnitOfWork
from worker.context import WorkerContext
from worker.jobs.sweeping import run_sweeps

logger = logging.getLogger(__name__)

_A_TRANSACTION = 500


async def wake_stranded_events(ctx: dict[str, Any]) -> None:
    """Wake events that wait for one that is gone. The engine should leave none; this repairs the outbox if it does."""
    worker: WorkerContext = ctx["worker"]
    ended = await run_sweeps(worker.open_unit_of_work, [STRANDED], slice_size=_A_TRANSACTION)
    if ended[STRANDED.name]:
        logger.error("woke events that waited for one that is gone", extra={"aggregates": ended[STRANDED.name]})


class Waiting(NamedTuple):
    """An aggregate with waiting events. The first of them is `stranded` if nothing is left to wake it."""

    aggregate: str
    stranded: bool

    @property
    def subject(self) -> str:
        return self.aggregate


async def _find(uow: UnitOfWork, after: Waiting | None, limit: int) -> list[Waiting]:
    found = await uow.outbox.waiting_aggregates(after.aggregate if after else "", limit)
    return [Waiting(aggregate, stranded) for aggregate, stranded in found.items()]


async def _wake(uow: UnitOfWork, waiting: Sequence[Waiting]) -> list[str]:
    stranded = [one.aggregate for one in waiting if one.stranded]
    return await uow.outbox.wake_stranded(stranded) if stranded else []


STRANDED: Sweep[Waiting] = Sweep("stranded_events", _find, _wake)
"""Events that sleep although nothing is left to wake them."""
