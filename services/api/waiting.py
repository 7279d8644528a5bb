"""What waits in the outbox, as the metrics and autoscalers read it: one look for all of them, every few seconds."""

import asyncio
from collections.abc import Sequence
from time import monotonic

from services.api.probe import Probe
from services.outbox.control.schemas import Waiting
from services.unit_of_work import UnitOfWork

KEPT = 5.0
"""Seconds for which an answer is reused."""

PATIENCE = 5.0
"""Time limit for the database, in seconds; by default Prometheus gives up on a scrape after ten."""


class WaitingEvents:
    """Waiting events of each type; of the `types` that this release handles also if there are none."""

    def __init__(self, probe: Probe, types: Sequence[str]) -> None:
        self._probe = probe
        self._types = types
        self._found: list[Waiting] = []
        self._read_at: float | None = None

    async def read(self) -> Sequence[Waiting]:
        """What waited at most `KEPT` seconds ago. Raises what the database raises, and `TimeoutError`."""
        # Not through the request pool: the database is not down just because that pool is exhausted.
        async with asyncio.timeout(PATIENCE), self._probe.scraping:
            if self._read_at is None or monotonic() - self._read_at >= KEPT:
                async with UnitOfWork(self._probe.sessions, name="a look at what waits") as uow:
                    found = {one.type: one for one in await uow.control.waiting()}
                missing = {name: Waiting(name, {}, 0) for name in self._types if name not in found}
                self._found = sorted({**missing, **found}.values(), key=lambda one: one.type)
                self._read_at = monotonic()
            return self._found
