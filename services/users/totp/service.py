"""Setting up a second factor, checking its codes, and taking it away."""

import logging
from collections.abc import Sequence

from services.acting import Action
from services.errors import Conflict, Fault, NotFound, WrongCode
from services.fields import now
from services.repository import Lock
from services.sweeps.service import Sweep
from services.unit_of_work import UnitOfWork
from services.users.models import User
from services.users.repository import SignedIn
from services.users.sessions.models import Ended
from services.users.totp.codes import (
    Sealed,
    Secrets,
    hash_of,
    is_of_an_app,
    new_recovery_codes,
    new_secret,
    shown_secret,
    step_of,
    typed,
    uri_of,
)
from services.users.totp.repository import OldSecret
from services.users.totp.schemas import TotpEnrolment, TotpState

logger = logging.getLogger(__name__)

_ISSUER = "Waybill"


async def state_of(uow: UnitOfWork, caller: SignedIn, *, require_totp: bool) -> TotpState:
    """Whether the caller has a second factor, and needs one."""
    user = await _user(uow, caller.id)
    return TotpState(
        totp_since=user.totp_since,
        required=require_totp and user.role.is_staff,
        recovery_codes_left=await uow.totp.recovery_codes_left(user.id),
    )


async def enrol(uow: UnitOfWork, secrets: Secrets, user_id: int) -> TotpEnrolment:
    """Make a secret for an authenticator app. It does not count before it is confirmed.

    Raises `Conflict` if the user has a second factor.
    """
    user = await _user(uow, user_id, lock=Lock.change)
    if user.totp_since is not None:
        raise Conflict("you have a second factor already; remove it before you set up another one")
    secret = new_secret()
    await uow.totp.keep(user_id, secrets.seal(user_id, secret))
    return TotpEnrolment(secret=shown_secret(secret), otpauth_uri=uri_of(secret, user.email, _ISSUER))


async def confirm(uow: UnitOfWork, secrets: Secrets, caller: SignedIn, code: str) -> list[str]:
    """Ask for a code at each sign-in from now on; returns the recovery codes. All other sessions end.

    Raises `WrongCode`, and `Conflict` if there is nothing to confirm.
    """
    user = await _user(uow, caller.id, lock=Lock.change)
    if user.totp_since is not None:
        raise Conflict("your second factor is confirmed already")
    if await uow.totp.sealed(user.id) is None:
        raise Conflict("there is no second factor to confirm; ask for a secret with POST /v1/users/me/totp")
    if not await _use_code_of_an_app(uow, secrets, user.id, typed(code)):
        raise wrong_code()
    await uow.users.update(user, totp_since=now())
    # Those were begun without a second factor.
    await uow.sessions.end_all(user.id, Ended.factor_changed, but=caller.session_id)
    uow.record_act(Action.second_factor_set, f"user/{user.id}")
    return await _give_recovery_codes(uow, user.id)


async def use(uow: UnitOfWork, secrets: Secrets, user_id: int, code: str) -> bool:
    """Use a code of the user's app, or a recovery code; False if it is wrong, or was used before."""
    plain = typed(code)
    if is_of_an_app(plain):
        return await _use_code_of_an_app(uow, secrets, user_id, plain)
    if not await uow.totp.use_recovery_code(user_id, hash_of(plain)):
        return False
    logger.warning("a recovery code was used", extra={"user_id": user_id})
    uow.record_act(Action.recovery_code_used, f"user/{user_id}")
    return True


async def renew_recovery_codes(uow: UnitOfWork, secrets: Secrets, caller: SignedIn, code: str) -> list[str]:
    """Replace all recovery codes. Raises `WrongCode`, and `Conflict` without a second factor."""
    await _prove(uow, secrets, caller, code)
    uow.record_act(Action.recovery_codes_renewed, f"user/{caller.id}")
    return await _give_recovery_codes(uow, caller.id)


async def disable(uow: UnitOfWork, secrets: Secrets, caller: SignedIn, code: str) -> None:
    """Ask for no code any more. All other sessions end. Raises the errors of `renew_recovery_codes`."""
    await _remove(uow, await _prove(uow, secrets, caller, code))
    await uow.sessions.end_all(caller.id, Ended.factor_changed, but=caller.session_id)


async def reset(uow: UnitOfWork, email: str) -> None:
    """Take the second factor away from a user who has lost it. All their sessions end.

    Raises `NotFound` if there is no such user, and `Conflict` if they have no second factor.
    """
    found = await uow.users.by_email(email)
    if found is None:
        raise NotFound(f"there is no user with the e-mail address {email}")
    user = await _user(uow, found.id, lock=Lock.change)
    if user.totp_since is None:
        raise Conflict(f"{email} has no second factor")
    await _remove(uow, user)
    await uow.sessions.end_all(user.id, Ended.factor_changed)


def old_secrets(secrets: Secrets, key_id: str) -> Sweep[OldSecret]:
    """Secrets that are encrypted with this key, which is not the one that encrypts. They are encrypted again."""

    async def find(uow: UnitOfWork, after: OldSecret | None, limit: int) -> list[OldSecret]:
        return await uow.totp.sealed_with(key_id, after.user_id if after else 0, limit)

    async def seal_again(uow: UnitOfWork, due: Sequence[OldSecret]) -> list[str]:
        locked = await uow.totp.lock_sealed_with(key_id, [one.user_id for one in due])
        opened = {user_id: secrets.open(user_id, Sealed(token, key_id)) for user_id, token in locked.items()}
        sealed = {user_id: secrets.seal(user_id, secret) for user_id, secret in opened.items() if secret is not None}
        await uow.totp.seal_again(sealed)
        return [str(user_id) for user_id in sealed]

    return Sweep("totp_secrets", find, seal_again)


def wrong_code() -> WrongCode:
    """The error for a code with which a signed-in user confirms a request."""
    return WrongCode("the code is wrong, or was already used; wait for the next one", [Fault("is wrong", "#/otp")])


async def _prove(uow: UnitOfWork, secrets: Secrets, caller: SignedIn, code: str) -> User:
    user = await _user(uow, caller.id, lock=Lock.change)
    if user.totp_since is None:
        raise Conflict("you have no second factor")
    if not await use(uow, secrets, user.id, code):
        raise wrong_code()
    return user


async def _use_code_of_an_app(uow: UnitOfWork, secrets: Secrets, user_id: int, code: str) -> bool:
    sealed = await uow.totp.sealed(user_id)
    secret = secrets.open(user_id, sealed) if sealed else None
    if secret is None:
        logger.error(
            "a second factor cannot be read: it was encrypted with a key that is no longer set",
            extra={"user_id": user_id},
        )
        return False
    step = step_of(secret, code)
    return step is not None and await uow.totp.use_step(user_id, step)


async def _give_recovery_codes(uow: UnitOfWork, user_id: int) -> list[str]:
    codes = new_recovery_codes()
    await uow.totp.replace_recovery_codes(user_id, [hash_of(code) for code in codes])
    return codes


async def _remove(uow: UnitOfWork, user: User) -> None:
    await uow.users.update(user, totp_since=None)
    uow.record_act(Action.second_factor_removed, f"user/{user.id}")
    await uow.totp.forget(user.id)


async def _user(uow: UnitOfWork, user_id: int, *, lock: Lock | None = None) -> User:
    user = await uow.users.get(user_id, lock=lock)
    if user is None:
        raise NotFound(f"there is no user {user_id}")
    return user
