"""Who uses the console: members of the staff, each with what their role allows."""

import logging
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.api.dependencies import Device
from services.api.rights import check_rights
from services.api.state import api_state
from services.api.transaction import ahead
from services.console.tokens import session_token
from services.errors import Forbidden, Unauthenticated
from services.logs import RateLimitedLogger
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.repository import SignedIn
from services.users.sessions import service as sessions
from services.users.sessions.service import Lifetimes

outage = RateLimitedLogger(logging.getLogger(__name__))

IDLE = timedelta(hours=12)
"""A session of the console ends after this time without a request, or earlier if the settings say so."""


def lifetimes_of(settings: Settings) -> Lifetimes:
    """How long sessions of the console last."""
    lifetimes = Lifetimes.of(settings)
    return Lifetimes(min(IDLE, lifetimes.idle), lifetimes.longest)


def check_staff(user: SignedIn) -> None:
    """Raises `Forbidden` for customers and sellers."""
    if not user.role.is_staff:
        raise Forbidden(f"the console is for the staff; your role is {user.role.value}")


async def signed_in_staff(request: Request, device: Device) -> SignedIn:
    """The member of the staff who makes the request.

    Raises `Unauthenticated` without a session, and `Forbidden` without the scope that the handler declares.
    """
    state = api_state(request)
    uow: UnitOfWork = request.state.uow
    token = session_token(request)
    if token is None:
        raise Unauthenticated("sign in to use the console")
    session = await sessions.look_up(uow, token)
    user = None
    if session is None:
        await uow.rollback()
        async with ahead(request) as ending:
            await sessions.end_if_reused(ending, token, device)
    else:
        user = await uow.users.signed_in(session.caller, require_totp=state.settings.requires_totp)
    if session is None or user is None:
        raise Unauthenticated("your session has ended; sign in again")
    uow.act_as(user.actor, user.id)
    request.state.acting = uow.acting
    check_staff(user)
    request.state.staff = user
    check_rights(user, request.scope["endpoint"], state.settings)
    if session.is_due:
        # The request's own transaction may only read, and would hold a second connection.
        await uow.rollback()
        try:
            async with ahead(request) as extending:
                await sessions.extend(extending, session.caller, lifetimes_of(state.settings), device)
        except (DBAPIError, PoolTimeout, OSError) as error:
            # While the database is read-only, pages can still be read.
            outage.warning("a session of the console was not extended: %r", error)
    return user


Staff = Annotated[SignedIn, Depends(signed_in_staff)]
"""The member of the staff who makes the request, and has the scope that the handler declares."""
