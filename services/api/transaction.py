"""The transaction edge: one unit of work per request, committed before the reply is sent."""

import asyncio
import logging
import random
from contextlib import AbstractAsyncContextManager
from time import monotonic
from typing import Any

from fastapi import Request, Response
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.api.bodies import DEFAULT, read_whole
from services.api.callers import acting_in
from services.api.checked import CheckedRoute, Handle
from services.api.groups import Kind
from services.api.idempotency import Claim
from services.api.intents import in_group, kind_of
from services.api.kept import STORED, ReplayStored, check_free, is_kept, kept_reply, replayed
from services.api.problems import domain_problem, is_unavailable, outcome_unknown_problem
from services.api.rate_classes import RateClass
from services.api.reads import FAILURES, POSITION_HEADER
from services.api.shares import Use, use
from services.api.state import api_state, trace_of
from services.api.turns import Alone, Answered, Replay
from services.errors import DomainError
from services.idempotency.repository import PRIMARY_KEY, StoredReply
from services.sql import CONTENTION, sqlstate, violates
from services.unit_of_work import UnitOfWork, background

logger = logging.getLogger(__name__)

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_TRYING = 5.0
"""Seconds after the start of the first attempt during which another may begin."""


class CommitFailed(Exception):
    """The work was done but could not be committed: the client did nothing wrong, so this is a 5xx."""


class TransactionRoute(CheckedRoute):
    """A route whose handler runs inside `request.state.uow`.

    The reply is rendered, stored under the idempotency key if there is one, and the unit of work committed; only then
    is the reply sent. A FastAPI dependency with `yield` would commit after that, and a failed commit would already have
    been answered with 201. A deadlock victim, or a request whose connection was lost before the commit (a restarted
    server leaves dead ones in the pool), is retried from the start, a bounded number of times with jitter.
    """

    def is_short(self, request: Request) -> bool:
        """Requests for groups and, since their passwords have a queue of their own, attempts to sign in."""
        if kind_of(self.endpoint) is None and self.rate_class is not RateClass.sign_in:
            return False
        # At most five digits, so that no zeros in front are skipped.
        length = request.headers.get("content-length", "")
        return length.isdecimal() and len(length) <= 5 and int(length) <= DEFAULT.size

    def handler(self, handle: Handle) -> Handle:
        kind = kind_of(self.endpoint)

        async def handle_in_transaction(request: Request) -> Response:
            # The whole body before the first statement: no transaction waits for a client.
            await read_whole(request)
            use.set(Use.read if request.method in _READING else Use.write)
            response = None if kind is None else await _in_group(request, kind)
            if response is None:
                response = await _try_on_both(request, handle)
            if request.method not in _READING and response.status_code < 400:
                await _add_position(request, response)
            return response

        return handle_in_transaction


async def _in_group(request: Request, kind: Kind[Any, Any]) -> Response | None:
    """The reply of a request that was carried out in a group; None if it must be handled alone."""
    match await in_group(request, kind):
        case Answered(response):
            return response
        case Replay(stored):
            return await _replay(request, stored)
        case Alone():
            return None


async def _try_on_both(request: Request, handle: Handle) -> Response:
    """Handle the request; if what it read on the replica failed there, handle it once more without the replica."""
    state = api_state(request)
    attempts = state.settings.transaction_attempts
    request.state.avoids_replica = False
    started = monotonic()
    try:
        return await _try(request, handle, attempts)
    except FAILURES as error:
        if not (request.state.on_replica and state.reads.may_repeat(error, started)):
            raise
    request.state.avoids_replica = True
    return await _try(request, handle, attempts)


async def _add_position(request: Request, response: Response) -> None:
    """Say where in the primary's log the write is, so that later reads can ask for a server that has it."""
    position = await api_state(request).reads.position()
    if position is not None:
        response.headers[POSITION_HEADER] = str(position)


async def _try(request: Request, handle: Handle, attempts: int) -> Response:
    last_start = monotonic() + _TRYING
    for attempt in range(1, attempts + 1):
        try:
            return await _run(request, handle)
        except DBAPIError as error:
            if request.state.on_replica or not (
                _may_succeed_again(error) or _was_lost_before_the_commit(request, error)
            ):
                raise
            pause = random.uniform(0, 0.01 * 2**attempt)  # noqa: S311
            if attempt == attempts or monotonic() + pause > last_start:
                raise
            logger.info("retrying the transaction, attempt %d: %s", attempt + 1, error.orig)
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")


async def _run(request: Request, handle: Handle) -> Response:
    request.state.claim = None
    request.state.committing = False
    request.state.on_replica = False
    try:
        async with open_unit_of_work(request) as uow:
            request.state.uow = uow
            response = await handle(request)
            if request.method in _READING:
                return response
            claim: Claim | None = request.state.claim
            if claim is not None:
                _keep(uow, claim, response)
            await uow.flush()
            request.state.committing = True
            await _commit(uow)
            if claim is not None:
                STORED.inc()
            return response
    except ReplayStored as replay:
        return await _replay(request, replay.stored)
    except DomainError as refusal:
        refused = domain_problem(request, refusal)
        claim = request.state.claim
        if claim is None or not is_kept(refused.status_code):
            return refused
        return await _store_refusal(request, claim, refused)


def _keep(uow: UnitOfWork, claim: Claim, reply: Response) -> None:
    """Store the reply under its key, together with the other writes."""
    uow.write_with_events(uow.idempotency.storing(kept_reply(claim.request, claim.caller, reply)))


async def _commit(uow: UnitOfWork) -> None:
    try:
        await uow.commit()
    except IntegrityError as error:
        if _may_succeed_again(error):
            raise
        raise CommitFailed("a constraint that is checked at the commit was violated") from error


async def _store_refusal(request: Request, claim: Claim, refused: Response) -> Response:
    """Store a refusal, whose work was rolled back, as the key's outcome.

    The rollback released the key for a moment. If another request has claimed it since, its outcome is the reply.
    """
    try:
        async with open_unit_of_work(request) as uow:
            # The other one may have been sent with another credential of the same user.
            check_free(await uow.idempotency.take(claim.request), claim.request, claim.caller)
            _keep(uow, claim, refused)
            request.state.committing = True
            await uow.commit()
            STORED.inc()
    except ReplayStored as replay:
        return await _replay(request, replay.stored)
    except DomainError as other:
        return domain_problem(request, other)
    return refused


async def _replay(request: Request, stored: StoredReply) -> Response:
    """Send the stored reply again.

    If commits wait for a standby, the original wait may have been cut short: the reply is stored, but not yet safe.
    Therefore this commits first, which waits for the standby again.
    """
    if stored.awaits_standby:
        try:
            async with open_unit_of_work(request) as uow:
                await uow.idempotency.write_marker()
                await uow.commit()
        except (DBAPIError, PoolTimeout, OSError) as error:
            logger.warning("a stored reply may not be safe yet and was not sent: %r", error)
            return outcome_unknown_problem(request)
    return replayed(stored)


def ahead(request: Request) -> AbstractAsyncContextManager[UnitOfWork]:
    """A unit of work that is committed at the end of the block, before the request's own.

    For what must stay even if the request is refused, or must be seen by others before it continues. The request's own
    unit of work must not have begun: it would hold a second connection.
    """
    return background(lambda: open_unit_of_work(request))


def open_unit_of_work(request: Request) -> UnitOfWork:
    """A unit of work for this request; its events carry the request's id and trace context, and who acts if known."""
    state = api_state(request)
    trace = trace_of(request)
    name = f"{request.method} {request.scope['path']}, request {trace.request_id}"
    return UnitOfWork(state.database.write, state.doorbell, trace, acting=acting_in(request), name=name)


def _may_succeed_again(error: DBAPIError) -> bool:
    # Another transaction stored a reply under the same key after this one looked: the next attempt finds it.
    key_taken = sqlstate(error) == "23505" and violates(error, PRIMARY_KEY)
    return sqlstate(error) in CONTENTION or key_taken


def _was_lost_before_the_commit(request: Request, error: DBAPIError) -> bool:
    return is_unavailable(error) and not request.state.committing
