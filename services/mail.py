"""Outgoing mail: to the log, to a folder, or to an SMTP server."""

import asyncio
import logging
import os
import re
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiosmtplib

from services.fields import new_id
from services.settings import Settings

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r"""[^\s<>"'(,;]+@[^\s<>"'),;]+""")

PATIENCE = 20.0
"""Seconds that an SMTP server may take for a mail."""


class MailNotSent(Exception):
    """The mail was not accepted. It may be tried again; the message says why."""


class Sender(Protocol):
    """Hands mails over to be delivered."""

    async def send(self, message: EmailMessage) -> None:
        """Returns once the mail was accepted. Raises `MailNotSent`."""
        ...


class LogSender:
    """Writes mails to the log, where a developer reads them."""

    async def send(self, message: EmailMessage) -> None:
        logger.info(
            "mail", extra={"to": message["To"], "subject": message["Subject"], "text": message.get_content().strip()}
        )


@dataclass(frozen=True, slots=True)
class FolderSender:
    """Writes each mail to a file of its own (RFC 5322), readable only by its owner, for another program to deliver."""

    folder: Path

    async def send(self, message: EmailMessage) -> None:
        try:
            await asyncio.to_thread(self._write, message)
        except OSError as error:
            raise MailNotSent(f"cannot write to {self.folder}: {error}") from error

    def _write(self, message: EmailMessage) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{new_id()}.eml"
        draft = path.with_suffix(".new")
        with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(bytes(message))
        # Whole, or not there: a program that watches the folder must not read half a mail.
        draft.rename(path)


@dataclass(frozen=True, slots=True)
class SmtpSender:
    """Hands mails to an SMTP server. Credentials are sent only over TLS."""

    host: str
    port: int
    username: str | None
    password: str | None
    tls: bool
    """From the first byte (`smtps`). Otherwise STARTTLS is used if offered, and required if there are credentials."""

    async def send(self, message: EmailMessage) -> None:
        try:
            await aiosmtplib.send(
                message,
                hostname=self.host,
                port=self.port,
                username=self.username,
                password=self.password,
                use_tls=self.tls,
                start_tls=True if self.username and not self.tls else None,
                timeout=PATIENCE,
            )
        except (aiosmtplib.SMTPException, OSError) as error:
            raise MailNotSent(f"{self.host}:{self.port}: {_without_addresses(str(error), message['To'])}") from error


def _without_addresses(text: str, sent_to: str) -> str:
    """What an SMTP server said, which is stored and logged, without the address of the person whom the mail is for."""
    return _ADDRESS.sub("<address>", text.replace(sent_to, "<address>"))


def sender_of(settings: Settings) -> Sender | None:
    """What the settings say mails are sent with; None if none are."""
    if settings.mail_url is None:
        return LogSender() if settings.is_development else None
    url = urlsplit(settings.mail_url.get_secret_value())
    match url.scheme:
        case "console":
            return LogSender()
        case "file":
            return FolderSender(Path(unquote(url.path)))
    tls = url.scheme == "smtps"
    assert url.hostname is not None, "the settings check it"
    username, password = (unquote(part) if part else None for part in (url.username, url.password))
    return SmtpSender(url.hostname, url.port or (465 if tls else 587), username, password, tls)
