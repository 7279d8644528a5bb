"""Signing in, staying signed in, and signing out."""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self
from uuid import UUID

from services.acting import Action
from services.errors import NotFound, OtpInvalid, OtpRequired, SignInRefused, Unauthenticated
from services.fields import new_id, sha256_of
from services.settings import Settings
from services.sweeps.service import Sweep
from services.unit_of_work import UnitOfWork
from services.users.models import Presented, User
from services.users.passwords import Passwords
from services.users.repository import SignedIn
from services.users.sessions.models import Device, Ended
from services.users.sessions.repository import ExpiredSession
from services.users.sessions.schemas import SessionPublic, Sessions
from services.users.totp import service as totp
from services.users.totp.codes import Secrets

logger = logging.getLogger(__name__)

MOST_SESSIONS = 50
"""The most sessions of one user. Another one ends the least recently used."""

_PREFIX = "wbr_"
"""Secret scanners find refresh tokens by it."""
_SECRET_BYTES = 32
_EXTENDED_EVERY = timedelta(minutes=1)
"""A session whose token is shown with each request is not extended each time."""
_TRIES = 3
"""How often a password is checked if its hash is replaced meanwhile."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long a session lasts after it was last extended, and how long at most."""

    idle: timedelta
    longest: timedelta

    @classmethod
    def of(cls, settings: Settings) -> Self:
        longest = timedelta(seconds=settings.session_max_ttl)
        return cls(min(timedelta(seconds=settings.session_idle_ttl), longest), longest)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a person types to sign in. `otp` is a one-time code or a recovery code, if they gave one."""

    email: str
    password: str = field(repr=False)
    otp: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Granted:
    """A session that was begun or extended, and the only refresh token that extends it from now on."""

    caller: Presented
    refresh_token: str


@dataclass(frozen=True, slots=True)
class Reused:
    """The refresh token had been used, so it was stolen, or its successor was: the session has ended.

    A value and not an error, since it must be committed.
    """


@dataclass(frozen=True, slots=True)
class Shown:
    """A session that was found by its refresh token. Whether it has ended is still to be asked."""

    caller: Presented
    is_due: bool
    """Whether it is time to extend it."""


async def sign_in(
    uow: UnitOfWork, passwords: Passwords, secrets: Secrets, lifetimes: Lifetimes, given: Credentials, device: Device
) -> Granted:
    """Begin a session. Raises `Unauthenticated` without saying whether the address or the password was wrong.

    If both are right and the user has a second factor, raises `OtpRequired` without a code, before anything is read
    again, and `OtpInvalid` if it is wrong or used.
    """
    for _ in range(_TRIES):
        user = await uow.users.by_email(given.email)
        # The connection goes back to the pool while the hash is computed.
        await uow.rollback()
        right = await passwords.matches(user.hashed_password if user else None, given.password)
        if user is None or not right or not user.is_active:
            break
        if user.totp_since is not None:
            await _check_code(uow, secrets, user, given.otp)
        granted = await _begin(uow, passwords, lifetimes, user, given.password, device)
        if granted is not None:
            return granted
        # Replaced meanwhile: the hash, by a new password or another sign-in with this one, or the second factor.
        await uow.rollback()
    raise SignInRefused("the e-mail address or the password is wrong", user_id=user.id if user else None)


async def _check_code(uow: UnitOfWork, secrets: Secrets, user: User, code: str | None) -> None:
    if code is None:
        raise OtpRequired("a one-time code is required: send the code that your authenticator app shows as otp")
    # Their password was right: a recovery code that is used up here is theirs.
    uow.act_as(user.actor, user.id)
    if not await totp.use(uow, secrets, user.id, code):
        raise OtpInvalid("the one-time code is wrong, or was already used; wait for the next one")


async def _begin(
    uow: UnitOfWork, passwords: Passwords, lifetimes: Lifetimes, user: User, password: str, device: Device
) -> Granted | None:
    verified = user.hashed_password
    if passwords.outdated(verified):
        hashed = await passwords.hash(password)
        if not await uow.users.replace_hash(user.id, verified, hashed):
            return None
        verified = hashed
    token, session_id = _new_token(), new_id()
    begun = await uow.sessions.begin(
        session_id, user.id, verified, user.totp_since, lifetimes.idle, device, sha256_of(token)
    )
    if not begun:
        return None
    await uow.sessions.end_beyond(user.id, MOST_SESSIONS)
    uow.act_as(user.actor, user.id)
    uow.record_act(Action.signed_in, f"user/{user.id}", session=str(session_id))
    return Granted(Presented(user.id, session_id), token)


async def refresh(uow: UnitOfWork, lifetimes: Lifetimes, token: str, device: Device) -> Granted | Reused:
    """Extend a session and replace its refresh token (RFC 9700, section 4.14.2).

    A token works once. If it is used again, its session ends, because only one of the two who used it was the user.
    For a few seconds, a client that got no reply may use it again; the token in the lost reply becomes invalid.
    Raises `Unauthenticated` if the token is unknown, or its session has ended.
    """
    shown = sha256_of(token)
    caller = await uow.sessions.lock_by_token(shown)
    if caller is None or await uow.users.signed_in(caller, require_totp=False) is None:
        raise Unauthenticated("the refresh token is invalid, or its session has ended; sign in again")
    if await uow.sessions.is_reused(shown):
        await _end_reused(uow, caller, device)
        return Reused()
    following = _new_token()
    await uow.sessions.rotate(caller.session_id, shown, sha256_of(following))
    await extend(uow, caller, lifetimes, device)
    return Granted(caller, following)


async def _end_reused(uow: UnitOfWork, caller: Presented, device: Device) -> None:
    await uow.sessions.end(caller.user_id, caller.session_id, Ended.reused)
    uow.record_act(Action.token_reused, f"user/{caller.user_id}", session=str(caller.session_id))
    logger.warning(
        "a refresh token was used twice: its session was ended",
        extra={"user_id": caller.user_id, "session_id": str(caller.session_id), "address": device.address},
    )


async def end_if_reused(uow: UnitOfWork, token: str, device: Device) -> None:
    """End the session of a token that `look_up` did not find, if that is because it was used to extend the session.

    Only one of the two who have it is the user, as in `refresh`. A client that only shows its token never retries.
    """
    shown = sha256_of(token)
    caller = await uow.sessions.lock_by_token(shown)
    if caller is not None and await uow.sessions.is_reused(shown, may_retry=False):
        await _end_reused(uow, caller, device)


async def look_up(uow: UnitOfWork, token: str) -> Shown | None:
    """The session that a refresh token can extend, without using it; None if there is none.

    For a client that shows it with each request, as a browser does with a cookie.
    """
    found = await uow.sessions.by_token(sha256_of(token), _EXTENDED_EVERY)
    return None if found is None else Shown(*found)


async def extend(uow: UnitOfWork, caller: Presented, lifetimes: Lifetimes, device: Device) -> None:
    """Extend a session that has not ended."""
    await uow.sessions.extend(caller.session_id, lifetimes.idle, lifetimes.longest, device)


async def sessions_of(uow: UnitOfWork, caller: SignedIn) -> Sessions:
    """The caller's sessions."""
    rows = await uow.sessions.of_user(caller.id, MOST_SESSIONS)
    return Sessions(data=[SessionPublic(**row, current=row["id"] == caller.session_id) for row in rows])


async def sign_out(uow: UnitOfWork, caller: SignedIn, session_id: UUID) -> None:
    """End one of the caller's sessions. Raises `NotFound` if it has ended, or is not theirs."""
    if not await uow.sessions.end(caller.id, session_id, Ended.signed_out):
        raise NotFound(f"you have no session {session_id}")


async def sign_out_here(uow: UnitOfWork, caller: SignedIn) -> None:
    """End the session of this request. Raises `NotFound` if it was made with an API key, which has none."""
    if caller.session_id is None:
        raise NotFound("this request was made with an API key, which has no session")
    await sign_out(uow, caller, caller.session_id)


async def sign_out_everywhere(uow: UnitOfWork, caller: SignedIn) -> None:
    """End all of the caller's sessions, including this one."""
    await uow.sessions.end_all(caller.id, Ended.signed_out)
    uow.record_act(Action.signed_out_everywhere, f"user/{caller.id}")


def expired_sessions(retention: timedelta) -> Sweep[ExpiredSession]:
    """Sessions that ended longer ago than the retention, with their refresh tokens."""

    async def find(uow: UnitOfWork, after: ExpiredSession | None, limit: int) -> list[ExpiredSession]:
        return await uow.sessions.expired(retention, after, limit)

    async def delete(uow: UnitOfWork, due: Sequence[ExpiredSession]) -> list[str]:
        deleted = await uow.sessions.delete_expired(retention, [one.session_id for one in due])
        return [str(session_id) for session_id in deleted]

    return Sweep("sessions", find, delete)


def _new_token() -> str:
    return _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
