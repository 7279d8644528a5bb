"""The canary: writes a row every minute, commits it as requests do, and reads it back over another connection."""

import asyncio
import logging
import os
import socket
from enum import StrEnum
from functools import partial
from time import monotonic
from typing import Literal, TypeAlias

from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.connections import on_a_live_connection
from services.database import SessionFactory
from services.fields import new_id
from services.shielding import Lasting, end
from services.unit_of_work import UnitOfWork, background

logger = logging.getLogger(__name__)

CanaryState: TypeAlias = Literal["ok", "failed", "pending"]

_LIMIT = 5.0
"""Time limit for one attempt, in seconds."""

_RETRY = 5.0
"""Seconds between a failed attempt and the next one."""


class _Step(StrEnum):
    connect = "take a connection from the pool"
    write = "write its row"
    commit = "commit"
    read_back = "read its row back"
    compare = "find its row over another connection, after the commit"


class _NotFound(Exception):
    """The commit was confirmed, but the row is not there."""


class Canary:
    """Makes attempts from entry to exit. `state` is `failed` from a failed attempt until one succeeds.

    It writes through the request pool, so that it notices connections that are unfit for requests. An attempt that gets
    no connection in time is put off; it does not count as a failure of the database.
    """

    def __init__(self, writing: SessionFactory, reading: SessionFactory, interval: float) -> None:
        self._writing = writing
        self._reading = reading
        self._interval = interval
        self._id = new_id()
        self._number = 0
        self._step = _Step.connect
        self._complaint: tuple[int, _Step] | None = None
        self._succeeded_at = monotonic()
        self._running: Lasting | None = None
        self.state: CanaryState = "pending"
        self.failures = 0

    @property
    def age(self) -> float:
        """Seconds since the last success, or since the start if there has been none."""
        return monotonic() - self._succeeded_at

    async def __aenter__(self) -> "Canary":
        self._running = Lasting(self._run(), "canary", self._complain_of_its_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._running is not None:
            await self._running.end()

    async def _run(self) -> None:
        while True:
            well = await self._try()
            await asyncio.sleep(self._interval if well else min(_RETRY, self._interval))

    async def _try(self) -> bool:
        """Whether the attempt succeeded."""
        self._number += 1
        trying = asyncio.create_task(self._write_and_read_back(), name="canary-try")
        try:
            done, _ = await asyncio.wait({trying}, timeout=_LIMIT)
            if not done:
                # Its cleanup may take longer; the result does not wait for it.
                return self._note(TimeoutError(f"no answer within {_LIMIT:g} s"))
            (error,) = await asyncio.gather(trying, return_exceptions=True)
            return self._note(error)
        finally:
            await end(trying)

    async def _write_and_read_back(self) -> None:
        async with background(lambda: UnitOfWork(self._writing, name="the canary's write")) as uow:
            await on_a_live_connection(partial(self._write, uow))
            self._step = _Step.commit
        self._step = _Step.read_back
        found = await on_a_live_connection(self._read_back)
        if found != self._number:
            self._step = _Step.compare
            raise _NotFound(f"number {self._number} was committed, but number {found} was read")

    async def _write(self, uow: UnitOfWork) -> None:
        # A second attempt begins with another connection.
        await uow.rollback()
        self._step = _Step.connect
        await uow.session.connection()
        self._step = _Step.write
        await uow.canaries.write(self._id, socket.gethostname(), os.getpid(), self._number)

    async def _read_back(self) -> int | None:
        async with UnitOfWork(self._reading, name="the canary's read") as uow:
            return await uow.canaries.read(self._id)

    def _note(self, error: BaseException | None) -> bool:
        """Record the outcome; returns whether it is a success. A repeated error is logged once."""
        before = self._complaint
        if error is None:
            self.state, self._complaint, self._succeeded_at = "ok", None, monotonic()
            if before is not None:
                logger.info("canary: its row can be written and read back again")
            return True
        put_off = self._step is _Step.connect and isinstance(error, PoolTimeout | TimeoutError)
        self._complaint = (logging.WARNING if put_off else logging.ERROR, self._step)
        if not put_off:
            self.state = "failed"
            self.failures += 1
        if self._complaint != before:
            logger.log(self._complaint[0], "canary: could not %s: %r", self._step, error)
        return False

    def _complain_of_its_end(self, why: str) -> None:
        self.state = "failed"
        logger.critical("canary: its task ended (%s); this process stays unready until it is restarted", why)
