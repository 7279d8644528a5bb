"""Counting the attempts of a client to give the right password."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import Request
from pydantic import SecretStr

from services.api.state import api_state
from services.api.transaction import ahead
from services.errors import OtpRequired, TooManyAttempts
from services.unit_of_work import UnitOfWork
from services.users.attempts.service import Attempt, Limits, confirm, forgive, take_back, take_confirmation


@asynccontextmanager
async def counted(request: Request, take: Callable[[UnitOfWork, Limits], Awaitable[Attempt]]) -> AsyncIterator[Attempt]:
    """Count an attempt as failed, and commit that, before the block checks the password.

    Nothing is counted if too many passwords wait to be checked (`Overloaded`): the client is told to come back. Nor is
    it if the password was right, and a code is asked for (`OtpRequired`); what failed before still counts.

    A client that has to wait for its next attempt is told so after a moment, as in `Passwords.place`. As for `ahead`,
    the request's own unit of work must not have begun, also where the block raises `OtpRequired`.
    """
    state = api_state(request)
    try:
        async with state.passwords.place():
            async with ahead(request) as counting:
                attempt = await take(counting, Limits.of(state.settings))
            try:
                yield attempt
            except OtpRequired:
                async with ahead(request) as counting:
                    await take_back(counting, attempt)
                raise
    except TooManyAttempts:
        await state.passwords.delay_refusal()
        raise


async def confirm_password(request: Request, user_id: int, password: SecretStr, uow: UnitOfWork) -> None:
    """Check the caller's password again: their token may have been stolen. Wrong ones are counted, as at a sign-in.

    It rolls back what the unit of work has done.
    """
    async with _confirming(request, user_id, password, uow) as attempt:
        pass
    # Now, since what is wanted may still be refused.
    async with ahead(request) as counting:
        await forgive(counting, attempt)


@asynccontextmanager
async def confirmed(request: Request, user_id: int, password: SecretStr | None, uow: UnitOfWork) -> AsyncIterator[None]:
    """Count an attempt, and check the password if one is given, as `confirm_password` does.

    The count is forgiven once the block has succeeded, so wrong codes after the right password are counted as well.
    """
    async with _confirming(request, user_id, password, uow) as attempt:
        yield
    await forgive(uow, attempt)


@asynccontextmanager
async def _confirming(
    request: Request, user_id: int, password: SecretStr | None, uow: UnitOfWork
) -> AsyncIterator[Attempt]:
    # Only one connection at a time.
    await uow.rollback()
    async with counted(request, lambda counting, limits: take_confirmation(counting, limits, user_id)) as attempt:
        if password is not None:
            await confirm(uow, api_state(request).passwords, user_id, password)
        yield attempt
