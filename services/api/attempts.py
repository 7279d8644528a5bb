"""Counting the attempts of a client to give the right password."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import Request

from services.api.state import api_state
from services.api.transaction import ahead
from services.errors import Overloaded
from services.unit_of_work import UnitOfWork
from services.users.attempts.service import Attempt, Limits, take_back


@asynccontextmanager
async def counted(request: Request, take: Callable[[UnitOfWork, Limits], Awaitable[Attempt]]) -> AsyncIterator[Attempt]:
    """Count an attempt as failed, and commit that, before the block checks the password.

    Nothing is counted if too many passwords wait to be checked (`Overloaded`): the client is told to come back. As for
    `ahead`, the request's own unit of work must not have begun, also where the block raises `Overloaded`.
    """
    state = api_state(request)
    state.passwords.check_room()
    async with ahead(request) as counting:
        attempt = await take(counting, Limits.of(state.settings))
    try:
        yield attempt
    except Overloaded:
        # Others have filled the queue since: nothing was checked.
        async with ahead(request) as counting:
            await take_back(counting, attempt)
        raise
