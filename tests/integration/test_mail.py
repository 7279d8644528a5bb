"""Mails reach an SMTP server, and no password goes over a connection that is not encrypted."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from services.mail import FolderSender, LogSender, MailNotSent, SmtpSender, sender_of
from services.settings import Environment, Settings

SECRET = "Vh3kQ9sLx2TzR7mWb5NcJd8GyPf4AuEi"


def settings(url: str | None, environment: Environment = Environment.development) -> Settings:
    given = None if url is None else SecretStr(url)
    return Settings(
        _env_file=None,
        environment=environment,
        secret_key=SecretStr(SECRET),
        mail_url=given,
        email_verification=False,
    )


def message() -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "waybill@example.com", "ada@example.com", "Hello"
    made.set_content("a line\n.\nanother line\n")
    return made


@dataclass
class SmtpServer:
    """As much of an SMTP server as a client needs, on a port of this machine."""

    refuses: str | None = None
    commands: list[str] = field(default_factory=list)
    received: list[str] = field(default_factory=list)
    port: int = 0

    clients: list[asyncio.Task[None]] = field(default_factory=list)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["SmtpServer"]:
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.clients.append(asyncio.create_task(self._serve(reader, writer)))

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self
            async with asyncio.timeout(10):
                await asyncio.gather(*self.clients)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._converse(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 test ESMTP\r\n")
        while line := (await reader.readline()).decode().strip():
            self.commands.append(line)
            verb = line.split()[0].upper()
            if verb == "DATA" and self.refuses != "DATA":
                writer.write(b"354 go on\r\n")
                text = (await reader.readuntil(b"\r\n.\r\n")).decode()
                self.received.append(text.removesuffix("\r\n.\r\n"))
            # It would take a password over a connection that is not encrypted.
            extensions = b"250-test\r\n250-AUTH PLAIN LOGIN\r\n" if verb == "EHLO" else b""
            writer.write(extensions)
            if verb == "AUTH":
                writer.write(b"235 welcome\r\n")
                continue
            refused = self.refuses is not None and line.upper().startswith(self.refuses)
            writer.write(b"550 <Ada@Example.com>: mailbox unavailable\r\n" if refused else b"250 OK\r\n")
            if verb == "QUIT":
                break


async def test_a_mail_is_handed_to_the_smtp_server() -> None:
    async with SmtpServer().listening() as server:
        sender = sender_of(settings(f"smtp://127.0.0.1:{server.port}"))
        assert sender is not None
        await sender.send(message())
    assert [line for line in server.commands if line.startswith(("MAIL", "RCPT"))] == [
        "MAIL FROM:<waybill@example.com>",
        "RCPT TO:<ada@example.com>",
    ]
    assert "a line\r\n..\r\nanother line" in server.received[0]


@pytest.mark.parametrize("refuses", ["MAIL", "RCPT", "DATA"])
async def test_a_mail_that_the_server_refuses_was_not_sent(refuses: str) -> None:
    async with SmtpServer(refuses).listening() as server:
        sender = sender_of(settings(f"smtp://127.0.0.1:{server.port}"))
        assert sender is not None
        with pytest.raises(MailNotSent, match="mailbox unavailable") as refused:
            await sender.send(message())
    # It is logged, and stored until the mail is sent or dropped.
    assert "ada@example.com" not in str(refused.value).lower()


async def test_a_server_that_cannot_be_reached_is_an_error() -> None:
    async with SmtpServer().listening() as server:
        gone = server.port
    with pytest.raises(MailNotSent, match=f"127.0.0.1:{gone}"):
        await SmtpSender("127.0.0.1", gone, None, None, tls=False).send(message())


async def test_credentials_are_not_sent_without_tls() -> None:
    async with SmtpServer().listening() as server:
        sender = sender_of(settings(f"smtp://me:secret%40word@127.0.0.1:{server.port}"))
        assert isinstance(sender, SmtpSender)
        assert (sender.username, sender.password) == ("me", "secret@word")
        with pytest.raises(MailNotSent):
            await sender.send(message())
    assert not [line for line in server.commands if line.upper().startswith(("AUTH", "MAIL"))]
    assert server.received == []


async def test_in_development_mails_are_in_the_log_and_elsewhere_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    sender = sender_of(settings(None))
    assert isinstance(sender, LogSender)
    with caplog.at_level(logging.INFO, "services.mail"):
        await sender.send(message())
    (line,) = (vars(record) for record in caplog.records if record.name == "services.mail")
    assert (line["to"], line["subject"], line["text"]) == ("ada@example.com", "Hello", "a line\n.\nanother line")
    assert sender_of(settings(None, Environment.production)) is None
    with pytest.raises(ValidationError, match="writes tokens to the log"):
        settings("console:", Environment.production)
    assert isinstance(sender_of(settings("file:///var/mail", Environment.production)), FolderSender)


@pytest.mark.parametrize("url", ["smtp:", "smtp://", "http://x", "file:", "mail.example.com", "smtp://[", "smtp://x:0"])
def test_a_mail_url_that_is_malformed_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="expected smtp://"):
        settings(url)


@pytest.mark.parametrize(
    "more", [{"password_reset_link": "https://x/{tokn}"}, {"password_reset_link": "https://x"}, {"mail_from": "a\nb@c"}]
)
def test_a_mail_that_could_not_be_made_is_noticed_at_the_start(more: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="expected an address"):
        Settings(_env_file=None, environment=Environment.development, **more)  # type: ignore[arg-type]


async def test_a_folder_that_cannot_be_written_to_is_an_error_that_may_pass(tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("")
    with pytest.raises(MailNotSent, match="cannot write"):
        await FolderSender(file).send(message())
