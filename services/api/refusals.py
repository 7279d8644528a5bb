"""Security events: refused requests (401, 403, 429), counted in memory and written to the audit log.

A client that is refused must not be able to fill the disk: what is the same is counted together and written once a
minute at most, and so is what exceeds the number of different ones.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from starlette.types import Scope

from services.acting import Act, Acting, Action
from services.api.callers import REFUSALS
from services.api.request_times import route_path
from services.database import SessionFactory
from services.logs import RateLimitedLogger
from services.shielding import Lasting
from services.unit_of_work import UnitOfWork, background

logger = logging.getLogger(__name__)
trouble = RateLimitedLogger(logger)

INTERVAL = 60.0
"""Seconds between two rows about the same refusals."""

MOST_KEYS = 50
"""Different refusals with the same code that are written in a minute, per process. Others are counted together."""

_LOOK = 2.0
"""Seconds until a new kind of refusal is written."""

_PATIENCE = 5.0
_LONGEST_PATH = 200

OTHERS = "others"
"""The object of a row that counts the refusals beyond `MOST_KEYS`."""


class _Key(NamedTuple):
    """What refusals have in common that are counted together. The caller is an actor, or else an address."""

    action: Action
    code: str
    object: str
    caller: str | None


@dataclass(slots=True)
class _Counted:
    """Refusals that were not yet written, and the latest of them. `written_at` is in the time of `monotonic`."""

    by: Acting
    request_id: str | None
    path: str
    number: int = 0
    written_at: float | None = None


class Refusals:
    """Counts the refusals of this process, and writes them as long as `written` is open."""

    def __init__(self) -> None:
        self.counted: dict[_Key, _Counted] = {}

    def add(self, scope: Scope, status: int) -> None:
        """Count a reply with one of the statuses of `REFUSALS`."""
        action = REFUSALS[status]
        state = scope["state"]
        client = scope.get("client")
        by: Acting = state.get("acting") or Acting(address=client[0] if client else None)
        route = f"{scope['method']} {route_path(scope)}"
        if "refused_user" in state:
            user_id = state["refused_user"]
            action, route = Action.sign_in_refused, f"user/{user_id}" if user_id is not None else "user"
        caller = by.actor or (f"user {by.user_id}" if by.user_id is not None else by.address)
        key = _Key(action, state.get("refused_with", ""), route, caller)
        found = self.counted.get(key)
        if found is None:
            alike = sum(one.code == key.code and one.action is action for one in self.counted)
            if alike >= MOST_KEYS:
                key, by = _Key(action, key.code, OTHERS, None), Acting()
            found = self.counted.setdefault(key, _Counted(by, None, ""))
        found.by, found.request_id, found.path = by, state.get("request_id"), scope["path"][:_LONGEST_PATH]
        found.number += 1

    @asynccontextmanager
    async def written(self, sessions: SessionFactory) -> AsyncIterator[None]:
        """Write what was counted every few seconds, and at the end."""
        running = Lasting(self._run(sessions), "refusals", _complain_of_its_end)
        try:
            yield
        finally:
            await running.end()
            await self.write(sessions, monotonic() + INTERVAL)

    async def _run(self, sessions: SessionFactory) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            await self.write(sessions, monotonic())

    async def write(self, sessions: SessionFactory, now: float) -> None:
        """Write what is due at `now`, in the time of `monotonic`, a row for each key. What cannot be written stays."""
        for key, one in list(self.counted.items()):
            if one.number == 0 and one.written_at is not None and now - one.written_at >= INTERVAL:
                del self.counted[key]
        due = [
            (key, one, one.number)
            for key, one in self.counted.items()
            if one.number and (one.written_at is None or now - one.written_at >= INTERVAL)
        ]
        if not due:
            return
        try:
            async with (
                asyncio.timeout(_PATIENCE),
                background(lambda: UnitOfWork(sessions, name="security events")) as uow,
            ):
                uow.record_acts([_act(*one) for one in due])
        except Exception as error:  # noqa: BLE001  (whatever it is, the next attempt may succeed)
            trouble.warning("cannot write security events: %r", error)
            return
        for _, one, number in due:
            one.number -= number
            one.written_at = now


def _act(key: _Key, one: _Counted, number: int) -> Act:
    details = {"code": key.code, "path": one.path}
    return Act(key.action, key.object, one.by, one.request_id, details=details, number=number)


def _complain_of_its_end(why: str) -> None:
    logger.critical("security events: the task that writes them ended (%s); restart this process", why)
