"""Registering, and confirming e-mail addresses."""

from collections.abc import Sequence
from datetime import timedelta

from services.acting import Action
from services.credits.models import AccountBase
from services.errors import AlreadyExists, Fault, TokenInvalid, WrongPassword
from services.fields import sha256_of
from services.repository import Lock
from services.sql import Row, unless_taken
from services.sweeps.service import Sweep
from services.unit_of_work import UnitOfWork
from services.users.events import UserEmailChanged, UserRegistered
from services.users.models import User, UserBase
from services.users.passwords import Passwords
from services.users.registration.repository import ExpiredEmail
from services.users.registration.schemas import EmailConfirmation
from services.users.rights import Role
from services.users.schemas import UserCreate


async def create(uow: UnitOfWork, wanted: UserBase, hashed: str, role: Role) -> User:
    """Create the user and an empty account. Raises `AlreadyExists` if the address is taken."""
    with unless_taken("uq_users_email_lower", taken()):
        user = await uow.users.create(
            wanted,
            without=type(wanted).model_fields.keys() - UserBase.model_fields.keys(),
            hashed_password=hashed,
            role=role,
        )
    await uow.accounts.create(AccountBase(), user_id=user.id)
    uow.record(UserRegistered(user_id=user.id))
    uow.record_act(Action.registered, f"user/{user.id}", role=user.role.value)
    return user


async def ask(uow: UnitOfWork, passwords: Passwords, wanted: UserCreate, ttl: timedelta) -> None:
    """Mail a token to the address, with which its owner finishes the registration.

    The same is done, and as much of it, whether or not the address is taken: only the mail says so.
    """
    hashed = await passwords.hash(wanted.password.get_secret_value())
    await uow.registrations.ask(wanted.email, ttl, name=wanted.full_name, hashed=hashed)


async def find(uow: UnitOfWork, given: EmailConfirmation) -> Row:
    """What the token confirms. Raises `TokenInvalid`."""
    found = await uow.registrations.of_token(sha256_of(given.token.get_secret_value()))
    if found is None:
        raise _invalid()
    return found


async def confirm(uow: UnitOfWork, passwords: Passwords, given: EmailConfirmation) -> User:
    """Finish the registration, or give the user the new address. Works once.

    Raises `TokenInvalid`, `WrongPassword`, and `AlreadyExists` if a user has had the address since the mail was sent.
    """
    found = await find(uow, given)
    # The connection goes back to the pool while the hash is computed.
    await uow.rollback()
    if not await passwords.matches(found["hashed_password"], given.password.get_secret_value()):
        raise WrongPassword("this is not the password of the account that the mail is about")
    if not await uow.registrations.use(sha256_of(given.token.get_secret_value())):
        raise _invalid()
    if found["user_id"] is None:
        wanted = UserBase(email=found["email"], full_name=found["full_name"])
        user = await create(uow, wanted, found["hashed_password"], Role.customer)
    else:
        user = await _change(uow, found)
    # Others who wanted the address come too late.
    await uow.registrations.forget(user.email)
    return user


async def _change(uow: UnitOfWork, found: Row) -> User:
    user = await uow.users.get(found["user_id"], lock=Lock.change)
    if user is None or user.hashed_password != found["hashed_password"]:
        raise _invalid()
    former = user.email
    with unless_taken("uq_users_email_lower", taken()):
        await uow.users.update(user, email=found["email"])
    # They have proved with their password that it is them.
    uow.act_as(user.actor, user.id)
    uow.record(UserEmailChanged(user_id=user.id))
    uow.record_act(Action.email_changed, f"user/{user.id}")
    await uow.registrations.tell_former_address(former)
    return user


async def _find_expired(uow: UnitOfWork, after: ExpiredEmail | None, limit: int) -> list[ExpiredEmail]:
    return await uow.registrations.expired(after, limit)


async def _delete_expired(uow: UnitOfWork, due: Sequence[ExpiredEmail]) -> list[str]:
    return [str(one) for one in await uow.registrations.delete_expired([one.unverified_id for one in due])]


EXPIRED_EMAILS: Sweep[ExpiredEmail] = Sweep("unverified_emails", _find_expired, _delete_expired)
"""Addresses that were not confirmed in time, with their tokens and mails."""


def taken() -> AlreadyExists:
    """The error for an address that a user has, even a deleted one."""
    return AlreadyExists("a user with this e-mail address already exists", [Fault("is taken", "#/email")])


def _invalid() -> TokenInvalid:
    detail = "the token is unknown, expired or already used; register again, or change the address again"
    return TokenInvalid(detail, [Fault("is invalid", "#/token")])
