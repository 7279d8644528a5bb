"""Operations on users."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import IntegrityError

from services.errors import AlreadyExists, Conflict, Fault, InvalidInput, NotFound, StaleVersion, Unauthenticated
from services.sql import violates
from services.unit_of_work import UnitOfWork
from services.users.events import UserRegistered
from services.users.models import Caller, Role, User
from services.users.passwords import Passwords
from services.users.schemas import UserAdminUpdate, UserCreate, UserUpdate


async def register(uow: UnitOfWork, passwords: Passwords, wanted: UserCreate, role: Role = Role.customer) -> User:
    """Create the user and an empty account. Raises `AlreadyExists` if the address is taken."""
    # Before the first statement: no transaction is open while the hash is computed.
    hashed = await passwords.hash(wanted.password.get_secret_value())
    taken = AlreadyExists("a user with this e-mail address already exists", [Fault("is taken", "#/email")])
    if await uow.users.email_taken(wanted.email):
        raise taken
    user = User(**wanted.model_dump(exclude={"password"}), hashed_password=hashed, role=role)
    uow.session.add(user)
    try:
        await uow.session.flush()
    except IntegrityError as error:
        # Two concurrent registrations both found the address free; the unique index lets only one through.
        raise taken if violates(error, "uq_users_email_lower") else error from error
    await uow.ledger.open_account(user.id)
    uow.record(UserRegistered(user_id=user.id))
    return user


async def sign_in(uow: UnitOfWork, passwords: Passwords, email: str, password: str) -> User:
    """The active user with this address and password. Raises `Unauthenticated` without saying which was wrong."""
    user = await uow.users.by_email(email)
    # The connection goes back to the pool while the hash is computed.
    await uow.rollback()
    right = await passwords.matches(user.hashed_password if user else None, password)
    if user is None or not right or not user.is_active:
        raise Unauthenticated("the e-mail address or the password is wrong")
    if passwords.outdated(user.hashed_password):
        await uow.users.bulk_update([user.id], hashed_password=await passwords.hash(password))
    return user


async def update_self(uow: UnitOfWork, passwords: Passwords, user_id: int, changes: UserUpdate, version: int) -> User:
    """Change the user's own name or password. Raises `StaleVersion` if `version` is not the current one."""
    # The connection goes back to the pool while the hash is computed.
    await uow.rollback()
    hashed = await passwords.hash(changes.password.get_secret_value()) if changes.password else None
    user = await _locked(uow, user_id, version)
    if not changes.model_fields_set:
        return user
    _set(user, changes.model_dump(exclude_unset=True, exclude={"password"}))
    if hashed is not None:
        user.hashed_password = hashed
    return await _bumped(uow, user)


async def update_as_operator(
    uow: UnitOfWork, operator: Caller, user_id: int, changes: UserAdminUpdate, version: int
) -> User:
    """Change a user's name or role, or whether they may sign in. Operators cannot lock themselves out."""
    if operator.id == user_id and (changes.is_active is False or changes.role is Role.customer):
        raise InvalidInput("operators cannot deactivate or demote themselves; ask another operator")
    if changes.is_active is False or changes.role is Role.customer:
        await _keep_an_operator(uow, user_id)
    user = await _locked(uow, user_id, version)
    if not changes.model_fields_set:
        return user
    _set(user, changes.model_dump(exclude_unset=True))
    return await _bumped(uow, user)


async def delete(uow: UnitOfWork, user_id: int) -> None:
    """Soft-delete the user: they can no longer sign in, and their products go off sale. Orders and credits stay."""
    await _keep_an_operator(uow, user_id)
    user = await get(uow, user_id, lock=True)
    user.version += 1
    await uow.users.soft_delete(user)
    await uow.products.take_off_sale(user_id)


async def delete_as_operator(uow: UnitOfWork, operator: Caller, user_id: int) -> None:
    """Delete another user. Operators cannot lock themselves out this way."""
    if operator.id == user_id:
        raise InvalidInput("operators cannot delete themselves here; ask another operator")
    await delete(uow, user_id)


async def restore(uow: UnitOfWork, user_id: int) -> User:
    """Restore a deleted user. Their products stay off sale until they activate them again."""
    user = await uow.users.get_deleted(user_id)
    if user is None:
        raise NotFound(f"there is no deleted user {user_id}")
    user.version += 1
    await uow.users.restore(user)
    return user


async def get(uow: UnitOfWork, user_id: int, *, lock: bool = False) -> User:
    """The user; `lock` locks the row until the transaction ends. Raises `NotFound` if there is none."""
    user = await uow.users.get(user_id, lock=lock)
    if user is None:
        raise NotFound(f"there is no user {user_id}")
    return user


async def _keep_an_operator(uow: UnitOfWork, leaving: int) -> None:
    """Raise `Conflict` if this user is the last operator. Locks all operators, so that two cannot leave together."""
    if await uow.users.lock_operators() == [leaving]:
        raise Conflict("this is the last operator; make another user an operator first")


async def _locked(uow: UnitOfWork, user_id: int, version: int) -> User:
    user = await get(uow, user_id, lock=True)
    if user.version != version:
        raise StaleVersion(f"user {user_id} is now at version {user.version}, not {version}; fetch it and try again")
    return user


def _set(user: User, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(user, name, value)


async def _bumped(uow: UnitOfWork, user: User) -> User:
    user.version += 1
    await uow.session.flush()
    return user
