"""What this process remembers of the API keys that it has seen: whose they are, and when they were last used.

Neither says whether a key is still valid: that is read with each request.
"""

import asyncio
import logging
from collections import OrderedDict
from datetime import datetime

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.database import SessionFactory
from services.fields import now
from services.logs import RateLimitedLogger
from services.shielding import Lasting
from services.unit_of_work import UnitOfWork, background

logger = logging.getLogger(__name__)
trouble = RateLimitedLogger(logger)

INTERVAL = 60.0
"""Seconds between writes of when keys were last used."""

_REMEMBERED = 8192
"""The most keys whose owners are remembered."""
_PATIENCE = 10.0
"""Time limit for a write, in seconds."""
_LAST_PATIENCE = 2.0
"""The same, when the process ends."""


class SeenKeys:
    """The owners of the keys seen last, and the uses that are not stored yet, from entry to exit.

    A request never waits for the write of `last_used_at`. It is done in the background, once a minute for all keys, and
    when the process ends. What a killed process has not written is lost.
    """

    def __init__(self, database: SessionFactory) -> None:
        self._database = database
        self._owners: OrderedDict[bytes, int] = OrderedDict()
        self._used: dict[bytes, datetime] = {}
        self._running: Lasting | None = None

    async def __aenter__(self) -> "SeenKeys":
        self._running = Lasting(self._run(), "API keys", _complain_of_its_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._running is not None:
            await self._running.end()
        await self.store(_LAST_PATIENCE)

    async def owner_of(self, hashed: bytes) -> int | None:
        """The id of the user whose key has this SHA-256; None if there is no such key, or the database cannot be asked.

        The database is asked only for a key that has not been seen lately.
        """
        known = self.known_owner_of(hashed)
        if known is not None:
            return known
        try:
            async with UnitOfWork(self._database, name="the owner of an API key") as uow:
                found = await uow.users.with_key(hashed, require_totp=False)
        except (DBAPIError, PoolTimeout, OSError) as error:
            trouble.warning("could not find out whose an API key is: %r", error)
            return None
        if found is None:
            return None
        self._remember(hashed, found.id)
        return found.id

    def known_owner_of(self, hashed: bytes) -> int | None:
        """The same, without the database: None also for a key that has not been seen lately."""
        return self._owners.get(hashed)

    def used(self, hashed: bytes, user_id: int) -> None:
        """Note that a valid key of this user was used."""
        self._remember(hashed, user_id)
        self._used[hashed] = now()

    async def store(self, patience: float = _PATIENCE) -> None:
        """Store the uses. What cannot be stored is kept for the next time; no error is raised."""
        if not self._used:
            return
        used, self._used = self._used, {}
        is_stored = False
        try:
            async with (
                asyncio.timeout(patience),
                background(lambda: UnitOfWork(self._database, name="the last uses of API keys")) as uow,
            ):
                await uow.api_keys.mark_used(used)
            is_stored = True
        except Exception as error:  # noqa: BLE001  (whatever it is, the next attempt may succeed)
            trouble.warning("could not store when API keys were last used, and will try again: %r", error)
        finally:
            if not is_stored:
                # Those that were used meanwhile have a later time.
                self._used = {**used, **self._used}

    def _remember(self, hashed: bytes, user_id: int) -> None:
        self._owners[hashed] = user_id
        self._owners.move_to_end(hashed)
        if len(self._owners) > _REMEMBERED:
            self._owners.popitem(last=False)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            await self.store()


def _complain_of_its_end(why: str) -> None:
    logger.critical("API keys: the task that stores their last use ended (%s); restart this process", why)
