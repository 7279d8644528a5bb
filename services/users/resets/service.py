"""Setting a new password with a token from a mail, and what the mails say."""

import secrets
from dataclasses import dataclass
from datetime import timedelta
from email.message import EmailMessage

from services.acting import Action
from services.errors import Fault, TokenInvalid
from services.fields import sha256_of
from services.mail import MailNotSent
from services.repository import Lock
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.passwords import Passwords
from services.users.resets.models import MailKind
from services.users.resets.schemas import Reset
from services.users.sessions.models import Ended

_SECRET_BYTES = 32
_KIND = MailKind.password_reset

# Lines of less than 78 characters are sent as they are.
_RESET = """\
Someone asked for a new password for the account with this e-mail address.
To set it:

{link}

This works once, within {time}. If it was not you, ignore this
mail: your password stays the same.
"""

_VERIFICATION = """\
Someone wants to use this e-mail address for an account. If it was you,
confirm it:

{link}

This works once, within {time}, and needs the password of the
account. If it was not you, ignore this mail.
"""

_TAKEN = """\
Someone wants to use this e-mail address for an account, but there is one
with this address already, or there was one. If it was you, sign in with it,
or ask for a new password. If it was not you, ignore this mail.
"""

_CHANGED = """\
The account that had this e-mail address has another one now. If it was not
you who changed it, contact us.
"""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A mail to send now. It may be sent more than once: each has a token of its own."""

    mail_id: int
    kind: MailKind
    email: str
    token: str | None
    """None if the mail has none, since there is nothing to confirm."""


async def ask(uow: UnitOfWork, email: str) -> None:
    """Queue a mail to the user with this address. If there is none, the caller sees no difference."""
    await uow.mails.ask(_KIND, email)


async def next_mail(uow: UnitOfWork, settings: Settings) -> Claimed | None:
    """Claim a mail and make its token. Commit before it is sent: no transaction waits for a mail server."""
    while (row := await uow.mails.claim()) is not None:
        kind, token = MailKind(row["kind"]), secrets.token_urlsafe(_SECRET_BYTES)
        match kind:
            case MailKind.password_reset:
                ttl = timedelta(seconds=settings.password_reset_ttl)
                await uow.mails.give_token(sha256_of(token), _KIND, row["user_id"], row["email"], ttl)
                return Claimed(row["id"], kind, row["email"], token)
            case MailKind.email_changed:
                return Claimed(row["id"], kind, row["email"], None)
            case MailKind.verification:
                outlook = await uow.registrations.outlook(row["unverified_id"])
                if outlook is not None and not outlook["taken"]:
                    await uow.registrations.give_token(sha256_of(token), row["unverified_id"])
                    return Claimed(row["id"], kind, row["email"], token)
                if outlook is not None and not outlook["told"]:
                    await uow.registrations.note_told(row["unverified_id"])
                    return Claimed(row["id"], kind, row["email"], None)
                # It has expired, or its owner has been told that the address is taken.
                await uow.mails.sent(row["id"])
    return None


async def reset(uow: UnitOfWork, passwords: Passwords, given: Reset) -> None:
    """Set a new password and end all sessions. Raises `TokenInvalid`, and `InvalidInput` for a common password."""
    token, password = sha256_of(given.token.get_secret_value()), given.password.get_secret_value()
    # A hash is computed only for a person who has a token.
    if not await uow.mails.is_valid(token, _KIND):
        raise _invalid()
    passwords.check_new(password)
    await uow.rollback()
    hashed = await passwords.hash(password)
    user_id = await uow.mails.use(token, _KIND)
    user = await uow.users.get(user_id, lock=Lock.change) if user_id is not None else None
    if user is None:
        raise _invalid()
    passwords.check_new(password, user.email, user.full_name)
    await uow.users.update(user, hashed_password=hashed)
    await uow.sessions.end_all(user.id, Ended.password_changed)
    uow.act_as(user.actor, user.id)
    uow.record_act(Action.password_reset, f"user/{user.id}")


def message_of(settings: Settings, claimed: Claimed) -> EmailMessage:
    """The mail. It contains nothing that a user wrote but the address: someone else may have registered with it.

    Raises `MailNotSent` if a mail cannot be sent to it.
    """
    message = EmailMessage()
    message["From"] = settings.mail_from
    _address(message, claimed.email)
    match claimed.kind:
        case MailKind.password_reset:
            subject, text = "Set a new password", _RESET
            link, ttl = settings.password_reset_link, settings.password_reset_ttl
        case MailKind.verification:
            subject, text = "Confirm your e-mail address", _VERIFICATION if claimed.token else _TAKEN
            link, ttl = settings.email_verification_link, settings.email_verification_ttl
        case MailKind.email_changed:
            subject, text, link, ttl = "Your e-mail address was changed", _CHANGED, "", 0
    shown = (link or "Token: {token}").format(token=claimed.token)
    message["Subject"] = subject
    message.set_content(text.format(link=shown, time=_in_words(ttl)))
    return message


def _in_words(seconds: int) -> str:
    minutes = seconds // 60
    return f"{minutes} minutes" if minutes < 120 or minutes % 60 else f"{minutes // 60} hours"


def _address(message: EmailMessage, email: str) -> None:
    """Address the mail. An address may look like an encoded word (RFC 2047), which `email` decodes, or fails to."""
    try:
        message["To"] = email
        (read,) = message["To"].addresses
    except (ValueError, IndexError) as error:
        raise MailNotSent("no mail can be sent to this address: it is not a valid mail address") from error
    if read.addr_spec != email:
        raise MailNotSent("no mail can be sent to this address: the mail would go to a different one")


def _invalid() -> TokenInvalid:
    detail = "the token is unknown, expired or already used; request another mail"
    return TokenInvalid(detail, [Fault("is invalid", "#/token")])
