"""Growing pauses after wrong passwords, without a way to lock other people out permanently."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Self

from pydantic import SecretStr

from services.addresses import place_of
from services.errors import NotFound, TooManyAttempts, WrongPassword
from services.settings import Settings
from services.sweeps.service import Sweep
from services.unit_of_work import UnitOfWork
from services.users.attempts.repository import Forgotten
from services.users.passwords import Passwords

_MAILS = 3
"""Mails to one address until the first pause."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Failures until the first pause, for an account and an IP address (0: no limit), and how long pauses are."""

    account: int
    address: int
    first_pause: float
    longest_pause: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            account=settings.sign_in_attempts,
            address=settings.sign_in_address_attempts,
            first_pause=settings.sign_in_first_pause,
            longest_pause=settings.sign_in_max_pause,
        )


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that was counted as failed in advance, until `forgive` or `take_back`."""

    of_account: bytes
    of_address: bytes | None = None


async def take_sign_in(uow: UnitOfWork, limits: Limits, email: str, address: str | None) -> Attempt:
    """Count an attempt to sign in. Commit it before the password is checked: simultaneous guesses count as well.

    An account is counted by the e-mail address that was typed, whether or not such a user exists. An IP address from
    which one of the user's sessions was last used has its own count, so that strangers who guess do not lock the user
    out. Raises `TooManyAttempts` if the account or the address has to wait; then nothing is counted.
    """
    place = None if address is None else place_of(address)
    is_known = address is not None and await uow.attempts.is_known(email, address)
    of_account = _hash("known" if is_known else "account", email.lower(), place if is_known else None)
    await _take(uow, of_account, limits.account, limits)
    if place is None or not limits.address:
        return Attempt(of_account)
    of_address = _hash("address", place)
    await _take(uow, of_address, limits.address, limits)
    return Attempt(of_account, of_address)


async def take_confirmation(uow: UnitOfWork, limits: Limits, user_id: int) -> Attempt:
    """Count an attempt of a signed-in user to confirm who they are. Raises `TooManyAttempts`, as `take_sign_in`."""
    subject = _hash("confirm", str(user_id))
    await _take(uow, subject, limits.account, limits)
    return Attempt(subject)


async def confirm(uow: UnitOfWork, passwords: Passwords, user_id: int, password: SecretStr) -> None:
    """Raises `WrongPassword` if this is not the user's password, and `NotFound` if there is no such user."""
    user = await uow.users.get(user_id)
    if user is None:
        raise NotFound(f"there is no user {user_id}")
    # The connection goes back to the pool while the hash is computed.
    await uow.rollback()
    if not await passwords.matches(user.hashed_password, password.get_secret_value()):
        raise WrongPassword("current_password is not your password")


async def take_verification(uow: UnitOfWork, limits: Limits, unverified_id: int) -> Attempt:
    """Count an attempt to give the password that belongs to a mailed token. Raises `TooManyAttempts`."""
    subject = _hash("verify", str(unverified_id))
    await _take(uow, subject, limits.account, limits)
    return Attempt(subject)


async def take_mail(uow: UnitOfWork, limits: Limits, email: str, address: str | None) -> None:
    """Count a request for a mail to this address: a mailbox must not be flooded. Raises `TooManyAttempts`."""
    await _take(uow, _hash("mail", email.lower()), _MAILS, limits)
    if address is not None and limits.address:
        await _take(uow, _hash("mails", place_of(address)), limits.address, limits)


async def forgive(uow: UnitOfWork, attempt: Attempt) -> None:
    """The password was right: forget the account's failures, and take this attempt back from the address.

    The IP address's other failures stay. Otherwise, a person with one account could guess at others without a pause.
    """
    await uow.attempts.clear(attempt.of_account)
    if attempt.of_address is not None:
        await uow.attempts.give_back(attempt.of_address)


async def take_back(uow: UnitOfWork, attempt: Attempt) -> None:
    """Nothing was wrong, but more is asked for: the attempt does not count, and whatever failed before still does."""
    for subject in (attempt.of_account, attempt.of_address):
        if subject is not None:
            await uow.attempts.give_back(subject)


async def _take(uow: UnitOfWork, subject: bytes, free: int, limits: Limits) -> None:
    wait = await uow.attempts.take(subject, free, limits.first_pause, limits.longest_pause)
    if wait is not None:
        seconds = max(1, ceil(wait))
        raise TooManyAttempts(f"too many attempts; try again in {seconds} s", retry_after=seconds)


def _hash(kind: str, *parts: str | None) -> bytes:
    return hashlib.sha256("\x00".join((kind, *(part or "" for part in parts))).encode()).digest()


async def _find_forgotten(uow: UnitOfWork, after: Forgotten | None, limit: int) -> list[Forgotten]:
    return await uow.attempts.forgotten(after, limit)


async def _delete_forgotten(uow: UnitOfWork, due: Sequence[Forgotten]) -> list[str]:
    return [one.hex() for one in await uow.attempts.delete_forgotten([one.subject_hash for one in due])]


FORGOTTEN_ATTEMPTS: Sweep[Forgotten] = Sweep("failed_attempts", _find_forgotten, _delete_forgotten)
"""Accounts and addresses that have not failed for a while."""
