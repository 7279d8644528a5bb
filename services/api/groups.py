"""Group commit: requests that arrive while a commit is under way are carried out together in the next transaction.

No waiting time is added: a committer that is free takes whatever waits. Whatever goes wrong costs only time: the group
is rolled back and tried again in halves, and in the end each request alone, as if there were no groups.
`docs/decisions/0034-group-commit.md` says what a group changes, and what it does not.
"""

import asyncio
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, Generic, TypeVar
from uuid import UUID

from fastapi import Response
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from services.acting import Acting
from services.api import group_metrics as metrics
from services.api.callers import acting_in
from services.api.decided import Decided
from services.api.held import Held
from services.api.kept import STORED, ReplayStored, check_free, is_kept, kept_reply
from services.api.problems import domain_problem, is_unavailable, outcome_unknown_problem, overloaded
from services.api.request_log import ids_of
from services.api.rights import check_rights
from services.api.shares import Use, use
from services.api.spans import of_group
from services.api.tokens import no_longer_valid
from services.api.turns import Alone, Answered, Intent, Outcome, Replay, Turns
from services.database import SessionFactory, outcome_unknown
from services.errors import DomainError
from services.groups import Asked, Busy
from services.idempotency.repository import Free, InFlight, StoredReply
from services.logs import RateLimitedLogger, bind_from, unbind
from services.outbox.events import Trace
from services.settings import Settings
from services.shielding import Lasting
from services.sql import Read, waiting_at_most
from services.transaction import Bell
from services.unit_of_work import UnitOfWork
from services.users.models import Caller, Credential
from services.users.repository import SignedIn

logger = logging.getLogger(__name__)
trouble = RateLimitedLogger(logger)

WantedT = TypeVar("WantedT", bound=BaseModel)
DoneT = TypeVar("DoneT")

_LOCK_WAIT = 0.05
"""Seconds that a group waits for a lock it could not foresee, such as on a product that someone deletes."""

_MOST_WEIGHT = 1000
"""The most lines of orders in a group: deciding and rendering a group must not hold up the event loop."""

_FEWEST = 4
"""Groups are not made smaller than this: the fixed cost of each group would weigh too much."""

_LOOK_UP = 5.0
"""Seconds for finding out what became of a group whose commit was not confirmed."""

_LOOK_AGAIN = 0.05

_PATIENCE = 5.0
"""Seconds after which a group that cannot use the database is not tried again, as for a request that goes alone."""
_LONG = 0.05
"""Seconds after which a request's client is asked whether it is still there."""

_MOST_IDS = 10
"""How many requests of a group a line of the log names."""


@dataclass(frozen=True, slots=True, eq=False)
class Kind(Generic[WantedT, DoneT]):
    """Requests that can be carried out together: how they are read, carried out and answered."""

    schema: type[WantedT]
    reads: Callable[[UnitOfWork, Sequence[tuple[int, WantedT]]], Sequence[Read[Any]]]
    """What has to be read and locked for these requests, each with the id of its caller."""
    carry_out: Callable[
        [UnitOfWork, Sequence[Asked[WantedT]], Sequence[Any], Settings], Sequence[DoneT | DomainError | Busy]
    ]
    """Decide the requests in this order, with what the reads have found, and have the unit of work write them."""
    reply: Callable[[DoneT], Response]
    made: Callable[[DoneT], UUID]
    """The id of what the request has made. If the database refuses its row, the error contains this id."""
    writes: Callable[[WantedT], bool] = lambda _: True
    """Whether the request writes anything."""
    weight: Callable[[WantedT], int] = lambda _: 1
    """How much of a group's room the request takes."""
    name: Callable[[WantedT], Hashable] = lambda _: None
    """What no two requests of one caller in a group may have in common."""


class Groups:
    """The committers of one process, from entry to exit: one for each kind of request, made when it is first needed."""

    def __init__(self, settings: Settings, database: SessionFactory, bell: Bell) -> None:
        self._settings = settings
        self._database = database
        self._bell = bell
        self._committers: dict[Kind[Any, Any], _Committer] = {}
        self.are_open = settings.group_commit

    @property
    def waited(self) -> float:
        """The most seconds that a request of the running groups has waited for its group; 0 if none is running."""
        return max((committer.waited for committer in self._committers.values()), default=0.0)

    async def __aenter__(self) -> "Groups":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.are_open = False
        for committer in self._committers.values():
            await committer.close()

    async def join(self, kind: Kind[Any, Any], intent: Intent[Any]) -> Outcome:
        """What became of the request in its group."""
        committer = self._committers.get(kind)
        if committer is None:
            committer = _Committer(kind, self._settings, self._database, self._bell)
            self._committers[kind] = committer
        return await committer.join(intent)


class _Committer:
    """Carries out the waiting requests of one kind, a group at a time."""

    def __init__(self, kind: Kind[Any, Any], settings: Settings, database: SessionFactory, bell: Bell) -> None:
        self._kind = kind
        self._settings = settings
        self._database = database
        self._bell = bell
        self._turns = Turns[Any](kind.weight, kind.name, _MOST_WEIGHT)
        self._held = Held()
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._began: float | None = None
        self.waited = 0.0
        """The most seconds that a request of the running group has waited; 0 if none is running."""
        self._group_seconds = 0.0
        self._looking_up: set[asyncio.Task[None]] = set()
        # Not in the context of the request that happens to come first.
        self._running = Lasting(self._run(), "committer", self._complain_of_its_end, Context())

    async def join(self, intent: Intent[Any]) -> Outcome:
        """What became of the request in its group."""
        if self._running.task.done():
            return Alone()
        if self._expected_wait(intent.key.caller_id) > self._settings.group_commit_wait:
            metrics.refused.inc()
            return Answered(overloaded(intent.request))
        self._idle.clear()
        self._turns.put(intent)
        self._wanted.set()
        return await intent.outcome

    async def close(self) -> None:
        """Carry out what waits, then end."""
        await self._idle.wait()
        await self._running.end()
        await asyncio.gather(*self._looking_up)

    def _expected_wait(self, caller_id: int) -> float:
        """How many seconds a new request of this caller would wait: for the running group and those before its own."""
        running = 0.0 if self._began is None else monotonic() - self._began
        return running + self._turns.ahead(caller_id) / self._most() * self._group_seconds

    async def _run(self) -> None:
        use.set(Use.commit)
        while True:
            await self._wanted.wait()
            intents = self._turns.take(self._most())
            if not intents:
                self._held.hand_out()
                self._wanted.clear()
                self.waited = 0.0
                if not len(self._turns):
                    self._idle.set()
                continue
            again: Sequence[Intent[Any]] = ()
            self._began = monotonic()
            bound = bind_from(partial(_ids_of, intents))
            try:
                again = await self._carry_out(await self._still_there(intents))
            except Exception:
                logger.exception("group commit: a group of %d requests failed; each is handled alone", len(intents))
            finally:
                unbind(bound)
                # Whatever happens, no request waits forever.
                _leave([one for one in intents if one not in again and one not in self._held])
            self._turns.put_back(again)
            self._group_seconds += (monotonic() - self._began - self._group_seconds) / 8
            self._began = None

    def _most(self) -> int:
        """How many requests the next group may have: half of those that wait or have just been carried out.

        The clients of the latter are about to send their next ones. Two groups of half the size can take turns: while
        the database writes one, this process answers the other and reads its clients' next requests. One group of all
        would have each wait for the other.
        """
        half = (len(self._turns) + len(self._held) + 1) // 2
        return min(max(half, _FEWEST), self._settings.group_commit_size)

    async def _still_there(self, intents: Sequence[Intent[Any]]) -> list[Intent[Any]]:
        """Those whose clients have not disconnected while they waited. The others have no effect."""
        there = []
        self.waited = 0.0
        for intent in intents:
            waited = monotonic() - intent.arrived
            metrics.waited.observe(waited)
            # One that met a lock before has been waiting for someone else.
            if not intent.tries:
                self.waited = max(self.waited, waited)
            if waited > _LONG and await intent.request.is_disconnected():
                intent.fail(HTTPException(400, "the connection was closed before the request began"))
            else:
                there.append(intent)
        return there

    async def _carry_out(self, intents: Sequence[Intent[Any]]) -> list[Intent[Any]]:
        """Carry out the requests in one transaction, or in several smaller ones if that fails.

        Returns those that met a locked row, and have to be tried again.
        """
        if not intents:
            return []
        try:
            with of_group(intents):
                return await self._attempt(intents)
        except (PoolTimeout, OSError) as error:
            return self._give_up(intents, error)
        except DBAPIError as error:
            if is_unavailable(error):
                return self._give_up(intents, error)
            return await self._split(intents, error)
        except Exception as error:  # noqa: BLE001  (whatever it is, splitting shows which request causes it)
            return await self._split(intents, error)

    def _give_up(self, intents: Sequence[Intent[Any]], error: Exception) -> list[Intent[Any]]:
        """Let each request go alone: that the database cannot be used is not the fault of one of them.

        If that took long to find out, it is the answer: alone, each would wait as long once more.
        """
        metrics.splits.inc()
        trouble.warning("the database cannot be used by a group of %d requests: %r", len(intents), error)
        if self._began is not None and monotonic() - self._began > _PATIENCE:
            for intent in intents:
                intent.fail(error)
        return []

    async def _split(self, intents: Sequence[Intent[Any]], error: Exception) -> list[Intent[Any]]:
        """Try each half on its own: the request that causes the error ends up alone."""
        metrics.splits.inc()
        trouble.warning("a group of %d requests was rolled back and is tried again in halves: %r", len(intents), error)
        if len(intents) == 1:
            _leave(intents)
            return []
        middle = len(intents) // 2
        return [*await self._carry_out(intents[:middle]), *await self._carry_out(intents[middle:])]

    async def _attempt(self, intents: Sequence[Intent[Any]]) -> list[Intent[Any]]:
        """Carry out the requests in one transaction. Returns those that have to be tried again."""
        async with self._open(len(intents)) as uow:
            _, keys, callers, *found = await uow.read(
                waiting_at_most(_LOCK_WAIT),
                uow.idempotency.taking([one.key for one in intents]),
                uow.users.all_signed_in(
                    list({one.caller for one in intents}), require_totp=self._settings.requires_totp
                ),
                *self._kind.reads(uow, [(one.key.caller_id, one.wanted) for one in intents]),
            )
            decided = self._decide(uow, intents, keys, callers, found)
            self._held.hand_out_soon()
            try:
                if uow.has_work:
                    await uow.commit()
            except DBAPIError as error:
                if outcome_unknown(error):
                    self._look_up_later({one: decided.replies.pop(one) for one in decided.kept})
                elif refused := decided.named_in(error):
                    return self._without(refused, intents, error)
                else:
                    raise
        metrics.sizes.observe(len(intents))
        STORED.inc(sum(intent in decided.replies for intent in decided.kept))
        self._held.hold(decided.replies)
        return decided.again

    def _without(
        self, refused: Sequence[Intent[Any]], intents: Sequence[Intent[Any]], error: Exception
    ) -> list[Intent[Any]]:
        """Let those requests go alone whose rows the database has refused. The others are tried again, together."""
        metrics.splits.inc()
        trouble.warning("a group of %d requests was rolled back: the database refused a row: %r", len(intents), error)
        _leave(refused)
        return [one for one in intents if one not in refused]

    def _decide(
        self,
        uow: UnitOfWork,
        intents: Sequence[Intent[Any]],
        keys: Sequence[StoredReply | InFlight | Free],
        callers: Mapping[Credential, SignedIn],
        found: Sequence[Any],
    ) -> Decided:
        """Decide the requests in order; the unit of work is going to write their effects and their replies."""
        decided = Decided({}, [], [], {})
        free = []
        for intent, key in zip(intents, keys, strict=True):
            caller = callers.get(intent.caller)
            if caller is not None:
                _note(intent, caller)
            try:
                if caller is None:
                    raise no_longer_valid(intent.caller)
                # First, as for a request that goes alone: a stored reply must not be shown without it either.
                check_rights(caller, intent.request.scope["endpoint"], self._settings)
                check_free(key, intent.key, caller)
                free.append(intent)
            except ReplayStored as replay:
                decided.replies[intent] = Replay(replay.stored)
            except DomainError as refusal:
                decided.replies[intent] = Answered(domain_problem(intent.request, refusal))
        asked = [_asked(one, callers[one.caller]) for one in free]
        replies = []
        results = self._kind.carry_out(uow, asked, found, self._settings)
        for intent, result in zip(free, results, strict=True):
            if isinstance(result, Busy):
                decided.put_off(intent)
                continue
            refused = isinstance(result, DomainError)
            response = domain_problem(intent.request, result) if refused else self._kind.reply(result)
            decided.replies[intent] = Answered(response)
            if not refused:
                decided.made[intent] = self._kind.made(result)
            if not refused or is_kept(response.status_code):
                decided.kept.append(intent)
                replies.append(kept_reply(intent.key, callers[intent.caller], response))
        if replies:
            uow.write_with_events(uow.idempotency.storing_all(replies))
        return decided

    def _open(self, number: int) -> UnitOfWork:
        return UnitOfWork(self._database, self._bell, name=f"a group of {number} requests")

    def _look_up_later(self, replies: Mapping[Intent[Any], Outcome]) -> None:
        """Find out what became of a group whose commit was not confirmed, while the next groups are carried out."""
        for intent in replies:
            intent.is_looked_up = True
        task = asyncio.create_task(self._look_up(replies), name="look-up of a group")
        self._looking_up.add(task)
        task.add_done_callback(self._looking_up.discard)

    async def _look_up(self, replies: Mapping[Intent[Any], Outcome]) -> None:
        stored: Mapping[Intent[Any], StoredReply] = {}
        # The committers go on, with the connections that are reserved for them.
        use.set(Use.write)
        try:
            async with asyncio.timeout(_LOOK_UP):
                stored = await self._stored(list(replies))
        except TimeoutError:
            logger.warning("group commit: could not find out in time what became of %d requests", len(replies))
        finally:
            for intent, reply in replies.items():
                intent.settle(_confirmed(intent, reply, stored.get(intent)))

    async def _stored(self, intents: Sequence[Intent[Any]]) -> Mapping[Intent[Any], StoredReply]:
        """The replies that are stored under the keys, once no transaction holds one of the keys any more."""
        keys = [one.key for one in intents]
        while True:
            try:
                async with self._open(len(intents)) as uow:
                    (found,) = await uow.read(uow.idempotency.taking(keys))
                    if not any(isinstance(one, InFlight) for one in found):
                        # What was committed before the keys were ours is visible to the next statement.
                        (found,) = await uow.read(uow.idempotency.taking(keys))
                        stored = {
                            intent: one
                            for intent, one in zip(intents, found, strict=True)
                            if isinstance(one, StoredReply)
                        }
                        if any(one.awaits_standby for one in stored.values()):
                            # Wait for the standby again: the original wait may have been cut short.
                            await uow.idempotency.write_marker()
                            await uow.commit()
                        return stored
            except (DBAPIError, PoolTimeout, OSError) as error:
                trouble.warning("group commit: the look-up of an unconfirmed group failed, and is repeated: %r", error)
            await asyncio.sleep(_LOOK_AGAIN)

    def _complain_of_its_end(self, why: str) -> None:
        logger.critical("group commit: its task ended (%s); this process handles each request alone from now on", why)
        self._idle.set()
        self._held.hand_out()
        _leave(self._turns.clear())


def _asked(intent: Intent[Any], caller: SignedIn) -> Asked[Any]:
    trace = intent.trace
    return Asked(caller, intent.wanted, Trace(trace.request_id, trace.traceparent, caller.actor))


def _note(intent: Intent[Any], caller: Caller) -> None:
    """Remember for the log, and for the audit log if the request is refused, who sent it."""
    intent.request.state.acting = Acting(caller.actor, caller.id, acting_in(intent.request).address)


def _ids_of(intents: Sequence[Intent[Any]]) -> dict[str, object]:
    """What each line says that is logged while this group is carried out. Of many requests, it names the first."""
    if len(intents) == 1:
        return ids_of(intents[0].request.scope["state"])
    return {"requests": len(intents), "request_ids": [one.trace.request_id for one in intents[:_MOST_IDS]]}


def _leave(intents: Sequence[Intent[Any]]) -> None:
    """Let those requests go alone that have no outcome yet."""
    for intent in intents:
        if not intent.is_looked_up:
            intent.settle(Alone())


def _confirmed(intent: Intent[Any], reply: Outcome, stored: StoredReply | None) -> Outcome:
    """The answer to a request whose commit was not confirmed, after what was found under its key."""
    if stored is None or stored.fingerprint != intent.key.fingerprint:
        return Answered(outcome_unknown_problem(intent.request))
    # Another one is that of a repeated request, which found that this one had no effect.
    is_own = isinstance(reply, Answered) and bytes(reply.response.body) == stored.body
    return reply if is_own else Replay(stored)
