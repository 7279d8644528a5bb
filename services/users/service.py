"""Operations on users."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from services.acting import Action
from services.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
    RoleAlone,
    StaffAddress,
)
from services.repository import Lock, check_version
from services.sql import unless_taken
from services.unit_of_work import UnitOfWork
from services.users.events import UserEmailChanged
from services.users.models import Caller, User
from services.users.passwords import Passwords
from services.users.registration import service as registration
from services.users.repository import SignedIn
from services.users.resets.models import MailKind
from services.users.rights import KEPT, Role, Scope
from services.users.roles import service as roles
from services.users.roles.models import RoleRequest
from services.users.roles.service import RoleRules
from services.users.schemas import UserAdminUpdate, UserCreate, UserUpdate
from services.users.sessions.models import Ended


async def register(uow: UnitOfWork, passwords: Passwords, wanted: UserCreate, role: Role = Role.customer) -> User:
    """Create the user and an empty account. Raises `AlreadyExists` if the address is taken."""
    passwords.check_new(wanted.password.get_secret_value(), wanted.email, wanted.full_name)
    # Before the first statement: no transaction is open while the hash is computed.
    hashed = await passwords.hash(wanted.password.get_secret_value())
    await _email_is_free(uow, wanted.email)
    return await registration.create(uow, wanted, hashed, role)


async def needs_confirmation(uow: UnitOfWork, user_id: int, changes: UserUpdate) -> bool:
    """Whether a person who makes these changes could sign in as the user from then on, or keep the user from it."""
    return changes.password is not None or await wants_other_address(uow, user_id, changes)


async def wants_other_address(uow: UnitOfWork, user_id: int, changes: UserUpdate) -> bool:
    """Whether the changes include another e-mail address."""
    return changes.email is not None and changes.email != (await get(uow, user_id)).email


async def update_self(
    uow: UnitOfWork,
    passwords: Passwords,
    caller: SignedIn,
    changes: UserUpdate,
    version: int,
    *,
    verified_within: timedelta | None = None,
) -> User:
    """Change the user's own name, e-mail address or password.

    If `verified_within` is given, another address counts once its owner has confirmed it, within that time. Nothing
    tells the caller whether it is taken.

    A new password ends all other sessions, and makes tokens to reset it void. Raises `StaleVersion` if `version` is not
    the current one, and `AlreadyExists` if the address is taken.
    """
    without, values = {"password", "current_password"}, {}
    if changes.password is not None:
        user = await get(uow, caller.id)
        password = changes.password.get_secret_value()
        passwords.check_new(password, changes.email or user.email, changes.full_name or user.full_name)
        # The connection goes back to the pool while the hash is computed.
        await uow.rollback()
        values["hashed_password"] = await passwords.hash(password)
    if verified_within is not None:
        without.add("email")
    updated = await _update(uow, caller.id, changes, version, without=without, **values)
    if verified_within is not None and changes.email is not None and changes.email != updated.email:
        await uow.registrations.ask(changes.email, verified_within, user_id=caller.id)
    if values:
        await uow.sessions.end_all(caller.id, Ended.password_changed, but=caller.session_id)
        # Whoever reads the user's mail could take the account back with one that was sent before.
        await uow.mails.forget(caller.id, MailKind.password_reset)
        uow.record_act(Action.password_changed, f"user/{caller.id}")
    return updated


async def update_other(
    uow: UnitOfWork,
    caller: Caller,
    user_id: int,
    changes: UserAdminUpdate,
    version: int,
    rules: RoleRules,
    *,
    sends_mail: bool,
) -> User | RoleRequest:
    """Change a user's name, e-mail address or role, or whether they may sign in. Raises the errors of `update_self`.

    With `sends_mail`, the former e-mail address is told that there is another one: only its owner may know better.

    Returns what is requested instead if a second admin must approve the role, which then comes alone (`RoleAlone`).
    Raises `Forbidden` for a user whom the caller may not change, or not in this way, and `InvalidInput` for what
    callers cannot do to themselves.
    """
    user = await get(uow, user_id)
    new_role = changes.role is not None and changes.role is not user.role
    new_address = changes.email is not None and changes.email != user.email
    if caller.id == user_id and (changes.is_active is False or new_role or new_address):
        raise InvalidInput(
            "you cannot deactivate yourself or change your role: ask someone else; change your e-mail address at "
            "/v1/users/me, with your password"
        )
    _may_change(caller, user)
    if new_role and not caller.may(Scope.roles_write):
        raise _only_admins("change roles")
    # The address is enough to reset the password, and then to act as that user.
    if new_address and user.role.is_staff and not caller.may(Scope.roles_write):
        raise _only_admins("change the e-mail address of staff")
    if changes.is_active is not None and changes.is_active != user.is_active:
        _may_remove(caller, user)
    if not rules.alone and user.role.is_staff and new_address:
        raise StaffAddress("members of the staff change their e-mail address themselves, at /v1/users/me")
    if changes.role is not None and new_role and not rules.alone:
        if changes.model_fields_set != {"role"}:
            raise RoleAlone("another admin must approve the role: send it in a request of its own")
        check_version(user, version)
        return await roles.ask(uow, caller, user, changes.role, rules)
    if user.role in KEPT and (changes.is_active is False or new_role):
        await roles.keep_one_of_each(uow, user_id)
    role, is_active, former = user.role, user.is_active, user.email
    more = _returning(user, rules) if changes.is_active and not user.is_active else {}
    updated = await _update(uow, user_id, changes, version, **more)
    if updated.role is not role:
        uow.record_act(Action.role_changed, f"user/{user_id}", was=role.value, now=updated.role.value)
    if updated.is_active is not is_active:
        uow.record_act(Action.activated if updated.is_active else Action.deactivated, f"user/{user_id}")
    if new_address and sends_mail:
        await uow.registrations.tell_former_address(former)
    if changes.is_active is False:
        await uow.sessions.end_all(user_id, Ended.removed)
        await uow.api_keys.revoke_all(user_id)
    return updated


async def set_role(uow: UnitOfWork, email: str, role: Role) -> Role:
    """Give a user this role; returns the one before. For commands: access to the database is the authority.

    Raises `NotFound`, and `Conflict` for the last operator or admin.
    """
    user = await uow.users.by_email(email)
    if user is None:
        raise NotFound(f"there is no user with the address {email}")
    before = user.role
    await roles.change(uow, user, role)
    return before


async def delete(uow: UnitOfWork, user_id: int) -> None:
    """Soft-delete the user: they can no longer sign in, and their products go off sale. Orders and credits stay."""
    await roles.keep_one_of_each(uow, user_id)
    await uow.users.soft_delete(await get(uow, user_id, lock=Lock.change))
    await uow.products.take_off_sale(user_id)
    await uow.sessions.end_all(user_id, Ended.removed)
    await uow.api_keys.revoke_all(user_id)
    uow.record_act(Action.deleted, f"user/{user_id}")


async def delete_other(uow: UnitOfWork, caller: Caller, user_id: int) -> None:
    """Delete another user. Raises `Forbidden` for one whom the caller may not change."""
    if caller.id == user_id:
        raise InvalidInput("you cannot delete yourself here; use DELETE /v1/users/me, with your password")
    user = await get(uow, user_id)
    _may_change(caller, user)
    _may_remove(caller, user)
    await delete(uow, user_id)


async def restore(uow: UnitOfWork, caller: Caller, user_id: int, rules: RoleRules) -> User:
    """Restore a deleted user. Their products stay off sale until they activate them again.

    Unless one admin decides on roles alone, a member of the staff comes back as a customer. Raises `Forbidden` for a
    user whom the caller may not change.
    """
    user = await uow.users.get_deleted(user_id)
    if user is None or user.erased_at is not None:
        raise NotFound(f"there is no deleted user {user_id} who can be restored")
    _may_change(caller, user)
    _may_remove(caller, user)
    await uow.users.restore(user, **_returning(user, rules))
    uow.record_act(Action.restored, f"user/{user_id}")
    return user


async def get(uow: UnitOfWork, user_id: int, *, lock: Lock | None = None) -> User:
    """The user. Raises `NotFound` if there is none."""
    user = await uow.users.get(user_id, lock=lock)
    if user is None:
        raise NotFound(f"there is no user {user_id}")
    return user


def _may_change(caller: Caller, user: User) -> None:
    """Raises `Forbidden` if the user may do more than the caller, who does not decide on roles either."""
    if not caller.role.covers(user.role) and not caller.may(Scope.roles_write):
        raise _only_admins(f"change users with the role {user.role.value}")


def _may_remove(caller: Caller, user: User) -> None:
    """Raises `Forbidden` if the user is one of the staff: operators do not choose who else may approve."""
    if user.role.is_staff and not caller.may(Scope.roles_write):
        raise _only_admins("deactivate, delete or restore staff")


def _returning(user: User, rules: RoleRules) -> dict[str, Role]:
    """What else changes of a user who comes back: a role of the staff is requested again."""
    return {"role": Role.customer} if user.role.is_staff and not rules.alone else {}


def _only_admins(what: str) -> Forbidden:
    scope = Scope.roles_write.value
    return Forbidden(f"only admins may {what}: it needs the scope {scope}", scope=scope)


async def _update(
    uow: UnitOfWork,
    user_id: int,
    changes: UserUpdate | UserAdminUpdate,
    version: int,
    without: Collection[str] = (),
    **more: Any,
) -> User:
    user = await get(uow, user_id)
    check_version(user, version)
    new_address = changes.email is not None and changes.email != user.email and "email" not in without
    if changes.email is not None and new_address:
        await _email_is_free(uow, changes.email)
    with unless_taken("uq_users_email_lower", registration.taken()):
        await uow.users.update(user, changes, without=without, **more)
    if new_address:
        uow.record(UserEmailChanged(user_id=user_id))
        uow.record_act(Action.email_changed, f"user/{user_id}")
    return user


async def _email_is_free(uow: UnitOfWork, email: str) -> None:
    if await uow.users.email_taken(email):
        raise registration.taken()
