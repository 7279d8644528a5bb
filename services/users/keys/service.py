"""Making, rotating and revoking API keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self
from uuid import UUID

from services.acting import Action
from services.errors import Conflict, Fault, InvalidInput, NotFound, Unauthenticated
from services.fields import new_id, now
from services.repository import Lock
from services.settings import Settings
from services.sweeps.service import Sweep
from services.unit_of_work import UnitOfWork
from services.users.keys.models import ApiKey
from services.users.keys.repository import EndedKey
from services.users.keys.schemas import ApiKeyCreate
from services.users.keys.secret import hash_of, hint_of, new_secret
from services.users.models import Caller
from services.users.repository import SignedIn
from services.users.rights import PERSONAL, Scope


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How long a key lasts at most, and how many a user may have that have not been replaced.

    Twice as many can be used at once: those that have been replaced count as well, until their overlap has passed.
    """

    longest: timedelta
    most: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(timedelta(seconds=settings.api_key_max_ttl), settings.api_keys_per_user)


@dataclass(frozen=True, slots=True)
class Issued:
    """A new key, and its secret, which is stored nowhere."""

    row: ApiKey
    secret: str


async def make(uow: UnitOfWork, owner: Caller, wanted: ApiKeyCreate, limits: KeyLimits) -> Issued:
    """Make a key. Raises `InvalidInput` for a scope that it cannot have, or for the time, and `Conflict` if there are
    too many."""
    _check_scopes(owner, wanted.scopes)
    expires_at = _expiry(wanted.expires_at, limits.longest)
    await _lock_owner(uow, owner.id)
    await _check_number(uow, owner.id, limits)
    secret = new_secret()
    row = await uow.api_keys.create(
        wanted,
        without={"current_password", "expires_at"},
        user_id=owner.id,
        hash=hash_of(secret),
        hint=hint_of(secret),
        expires_at=expires_at,
    )
    uow.record_act(Action.key_made, f"key/{row.id}", scopes=[scope.value for scope in row.scopes])
    return Issued(row, secret)


async def rotate(uow: UnitOfWork, owner_id: int, key_id: UUID, overlap: timedelta, limits: KeyLimits) -> Issued:
    """Replace a key by a new one with the same name, scopes and lifetime. The old one ends after the overlap.

    A key that has been replaced can be replaced again: the reply with the new one may have been lost. Raises `NotFound`
    if the user has no such key that can be used, and `Conflict` if there are too many.
    """
    await _lock_owner(uow, owner_id)
    old = await uow.api_keys.find(owner_id, key_id, lock=Lock.change)
    if old is None:
        raise _unknown(key_id)
    await _check_number(uow, owner_id, limits, more_lasting=old.retires_at is not None)
    secret, new = new_secret(), new_id()
    await uow.api_keys.follow(old.id, new, hash_of(secret), hint_of(secret), limits.longest)
    await uow.api_keys.retire(old.id, overlap)
    uow.record_act(Action.key_rotated, f"key/{old.id}", replaced_by=new, overlap=overlap.total_seconds())
    return Issued(await find(uow, owner_id, new), secret)


async def rotate_current(uow: UnitOfWork, caller: SignedIn, overlap: timedelta, limits: KeyLimits) -> Issued:
    """Replace the key that makes the request. Raises `NotFound` if it was made with an access token."""
    if caller.key_id is None:
        raise NotFound("this request was made with an access token, not with an API key; rotate the key by its id")
    return await rotate(uow, caller.id, caller.key_id, overlap, limits)


async def find(uow: UnitOfWork, user_id: int, key_id: UUID) -> ApiKey:
    """A key of the user that can be used. Raises `NotFound`."""
    found = await uow.api_keys.find(user_id, key_id)
    if found is None:
        raise _unknown(key_id)
    return found


async def of_user(uow: UnitOfWork, user_id: int) -> list[ApiKey]:
    """The keys of any user that can be used. Raises `NotFound` if there is no such user."""
    if await uow.users.get(user_id) is None:
        raise NotFound(f"there is no user {user_id}")
    return await uow.api_keys.of_user(user_id)


async def revoke(uow: UnitOfWork, user_id: int, key_id: UUID) -> None:
    """End a key at once. Raises `NotFound` if it has ended, or is not this user's."""
    if not await uow.api_keys.revoke(user_id, key_id):
        raise _unknown(key_id)
    uow.record_act(Action.key_revoked, f"key/{key_id}", owner=user_id)


def ended_keys(retention: timedelta) -> Sweep[EndedKey]:
    """Keys that ended longer ago than the retention."""

    async def find_ended(uow: UnitOfWork, after: EndedKey | None, limit: int) -> list[EndedKey]:
        return await uow.api_keys.ended(retention, after, limit)

    async def delete(uow: UnitOfWork, due: Sequence[EndedKey]) -> list[str]:
        return [str(one) for one in await uow.api_keys.delete_ended(retention, [one.key_id for one in due])]

    return Sweep("api_keys", find_ended, delete)


def _check_scopes(owner: Caller, scopes: Sequence[Scope]) -> None:
    faults = []
    for number, scope in enumerate(scopes):
        if scope in PERSONAL:
            faults.append(Fault(f"{scope.value} is for people only", f"#/scopes/{number}"))
        elif not owner.may(scope):
            faults.append(Fault(f"{scope.value} is not a scope of your role, {owner.role.value}", f"#/scopes/{number}"))
    if faults:
        raise InvalidInput("an API key cannot have all of these scopes", faults)


def _expiry(wanted: datetime | None, longest: timedelta) -> datetime:
    at = now()
    if wanted is None:
        return at + longest
    if not at < wanted <= at + longest:
        fault = Fault(f"must be in the future, at most {longest} from now", "#/expires_at")
        raise InvalidInput(f"expires_at {fault.detail}", [fault])
    return wanted


async def _lock_owner(uow: UnitOfWork, user_id: int) -> None:
    if not await uow.api_keys.lock_owner(user_id):
        raise Unauthenticated("the user was deleted or deactivated")


async def _check_number(uow: UnitOfWork, user_id: int, limits: KeyLimits, *, more_lasting: bool = True) -> None:
    count = await uow.api_keys.count_of(user_id)
    if more_lasting and count.lasting >= limits.most:
        raise Conflict(f"you have {count.lasting} API keys, and {limits.most} are allowed; revoke one first")
    if count.usable >= 2 * limits.most:
        raise Conflict(
            f"{count.usable} of your API keys can be used, including replaced ones; revoke one, or wait until an "
            "overlap has passed"
        )


def _unknown(key_id: UUID) -> NotFound:
    return NotFound(f"there is no API key {key_id} that can be used")
