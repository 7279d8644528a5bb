"""A new password by mail, for those who have forgotten theirs."""

import asyncio
import email
import hashlib
import re
from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from services.mail import MailNotSent
from services.settings import Environment, Settings
from tests.api.client import Api, assert_problem
from tests.factories import CONFIRMED, PASSWORD, make_operator, make_user
from tests.logs import capture_logs
from worker.context import open_worker
from worker.jobs import mails
from worker.jobs.mails import send_mails

NEW = "a password of whales"
PATH = "/v1/password-resets"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    link = "https://shop.example/reset#{token}"
    return settings.model_copy(
        update={
            "sign_in_first_pause": 60.0,
            "mail_url": SecretStr(f"file://{tmp_path}/mails%20out"),
            "password_reset_link": link,
        }
    )


@pytest.fixture
async def ctx(settings: Settings) -> AsyncIterator[dict[str, Any]]:
    async with open_worker(settings) as worker:
        yield {"worker": worker}


async def ask(api: Api, address: str) -> Any:
    return await api.post(PATH, key=None, json={"email": address})


async def confirm(api: Api, token: str, password: str = NEW) -> Any:
    return await api.post(f"{PATH}/confirm", key=None, json={"token": token, "password": password})


def mailed(tmp_path: Path) -> list[EmailMessage]:
    files = sorted((tmp_path / "mails out").glob("*"))
    return [email.message_from_bytes(file.read_bytes(), _class=EmailMessage) for file in files]


def token_in(message: EmailMessage) -> str:
    found = re.search(r"https://shop\.example/reset#(\S+)", str(message.get_payload()))
    assert found is not None, message
    return found[1]


async def reset_token(api: Api, ctx: dict[str, Any], address: str, tmp_path: Path) -> str:
    assert (await ask(api, address)).status_code == 202
    await send_mails(ctx)
    return token_in(mailed(tmp_path)[-1])


async def test_a_person_sets_a_new_password_with_the_token_from_a_mail(
    api: Api, ctx: dict[str, Any], tmp_path: Path
) -> None:
    user = await make_user(api.database, email="ada@example.com")
    token = await reset_token(api, ctx, "ADA@example.com", tmp_path)
    (mail,) = mailed(tmp_path)
    assert (mail["To"], mail["From"]) == ("ada@example.com", "Waybill <waybill@localhost>")
    assert "within 30 minutes" in str(mail.get_payload())
    assert next((tmp_path / "mails out").iterdir()).stat().st_mode & 0o777 == 0o600
    assert (await confirm(api, token)).status_code == 204
    assert (await api.get("/v1/users/me", by=user)).status_code == 401, "all sessions end"
    assert (await api.sign_in(user.email, PASSWORD)).status_code == 401
    assert (await api.sign_in(user.email, NEW)).status_code == 200
    again = await confirm(api, token, "yet another one")
    assert_problem(again, 422, "token_invalid", pointers=["#/token"])
    assert (await api.sign_in(user.email, NEW)).status_code == 200
    await send_mails(ctx)
    assert len(mailed(tmp_path)) == 1, "a mail that was sent is not sent again"


async def test_the_answer_does_not_tell_whether_the_address_is_known(
    api: Api, ctx: dict[str, Any], tmp_path: Path
) -> None:
    operator = await make_operator(api.database)
    known, inactive, deleted = [await make_user(api.database) for _ in range(3)]
    await api.patch(f"/v1/users/{inactive.id}", by=operator, version=1, json={"is_active": False})
    await api.delete("/v1/users/me", by=deleted, json=CONFIRMED)
    replies = [await ask(api, one) for one in (known.email, "x@example.com", inactive.email, deleted.email)]
    assert {(reply.status_code, reply.text) for reply in replies} == {(202, "null")}
    await send_mails(ctx)
    assert [mail["To"] for mail in mailed(tmp_path)] == [known.email]


async def test_a_mailbox_is_not_flooded_and_unknown_addresses_pause_alike(
    api: Api, ctx: dict[str, Any], tmp_path: Path
) -> None:
    user = await make_user(api.database)
    for address in (user.email, "nobody@example.com"):
        replies = [await ask(api, address) for _ in range(4)]
        assert [reply.status_code for reply in replies] == [202, 202, 202, 429]
        assert_problem(replies[-1], 429, "too_many_attempts")
        assert 0 < int(replies[-1].headers["retry-after"]) <= 60
    await send_mails(ctx)
    assert len(mailed(tmp_path)) == 1, "while one waits, no other is added"


async def test_only_the_sha256_of_the_token_is_stored(api: Api, ctx: dict[str, Any], tmp_path: Path) -> None:
    user = await make_user(api.database)
    token = await reset_token(api, ctx, user.email, tmp_path)
    assert await api.scalar("SELECT hash FROM one_time_tokens") == hashlib.sha256(token.encode()).digest()
    assert token not in await api.scalar("SELECT one_time_tokens::text FROM one_time_tokens")
    assert len(token) >= 43


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE one_time_tokens SET expires_at = now()",
        "UPDATE users SET email = 'other@example.com'",
        "UPDATE users SET is_active = false",
        "UPDATE users SET deleted_at = now()",
    ],
)
async def test_a_token_that_is_no_longer_valid_is_refused(
    api: Api, ctx: dict[str, Any], tmp_path: Path, spoil: str
) -> None:
    user = await make_user(api.database)
    token = await reset_token(api, ctx, user.email, tmp_path)
    await api.execute(spoil)
    before = await api.everything()
    assert_problem(await confirm(api, token), 422, "token_invalid", pointers=["#/token"])
    assert await api.everything() == before
    assert_problem(await confirm(api, "x" * 43), 422, "token_invalid", pointers=["#/token"])


async def test_a_token_is_worth_nothing_once_the_user_has_another_password(
    api: Api, ctx: dict[str, Any], tmp_path: Path
) -> None:
    user, other = await make_user(api.database), await make_user(api.database)
    token, of_other = [await reset_token(api, ctx, one.email, tmp_path) for one in (user, other)]
    wanted = {"password": "another one of mine", "current_password": PASSWORD}
    assert (await api.patch("/v1/users/me", by=user, version=1, json=wanted)).status_code == 200
    assert_problem(await confirm(api, token), 422, "token_invalid", pointers=["#/token"])
    assert (await confirm(api, of_other)).status_code == 204


async def test_of_simultaneous_uses_of_a_token_one_succeeds(api: Api, ctx: dict[str, Any], tmp_path: Path) -> None:
    user = await make_user(api.database)
    token = await reset_token(api, ctx, user.email, tmp_path)
    replies = await asyncio.gather(*[confirm(api, token, f"password number {n}") for n in range(5)])
    assert sorted(reply.status_code for reply in replies) == [204] + [422] * 4
    assert await api.scalar("SELECT version FROM users") == 2


async def test_a_refused_password_leaves_the_token_usable(api: Api, ctx: dict[str, Any], tmp_path: Path) -> None:
    user = await make_user(api.database, email="ada.lovelace@example.com")
    token = await reset_token(api, ctx, user.email, tmp_path)
    for common in ("password123", "Ada.Lovelace1"):
        assert_problem(await confirm(api, token, common), 422, "invalid_input", pointers=["#/password"])
    assert (await confirm(api, token)).status_code == 204


async def test_without_a_way_to_send_mail_the_reply_says_so(api: Api) -> None:
    off = api.settings.model_copy(update={"environment": Environment.production, "mail_url": None})
    state = api.app.state.waybill
    api.app.state.waybill = type(state)(**{name: getattr(state, name) for name in state.__slots__} | {"settings": off})
    assert_problem(await ask(api, "ada@example.com"), 404, "mail_off")


class Refusing:
    """Accepts no mail for this address, and notes what it was given."""

    def __init__(self, refused: str | None = None, error: BaseException | None = None) -> None:
        self.refused = refused
        self.error = error or MailNotSent("mailbox full")
        self.seen: list[str] = []
        self.look: Any = None

    async def send(self, message: EmailMessage) -> None:
        self.seen.append(token_in(message))
        if self.look is not None:
            self.look = await self.look
        if message["To"] == self.refused:
            raise self.error


async def test_no_transaction_is_open_while_a_mail_is_sent(
    api: Api, ctx: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make_user(api.database)
    await ask(api, user.email)
    sender = Refusing()
    open_ones = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND xact_start IS NOT NULL AND application_name LIKE 'waybill-worker%' AND state LIKE 'idle in trans%'"
    )

    async def open_transactions() -> Any:
        # The worker's own loops have short ones. One around the sending would stay.
        for _ in range(100):
            number = await api.scalar(open_ones)
            if number == 0:
                break
            await asyncio.sleep(0.05)
        return number

    sender.look = open_transactions()
    monkeypatch.setattr(mails, "sender_of", lambda _: sender)
    await send_mails(ctx)
    assert (len(sender.seen), sender.look) == (1, 0)
    assert (await confirm(api, sender.seen[0])).status_code == 204, "its token was committed before it was sent"


async def test_a_mail_that_is_not_accepted_is_tried_again_and_holds_up_no_other(
    api: Api, ctx: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await make_user(api.database), await make_user(api.database)
    await ask(api, first.email)
    await ask(api, second.email)
    sender = Refusing(first.email)
    monkeypatch.setattr(mails, "sender_of", lambda _: sender)
    await send_mails(ctx)
    assert len(sender.seen) == 2
    kept = "SELECT concat_ws(' ', user_id, attempts, last_error) FROM mails"
    assert await api.scalar(kept) == f"{first.id} 1 mailbox full"
    await send_mails(ctx)
    assert len(sender.seen) == 2, "not before a minute has passed"
    await api.execute("UPDATE mails SET due_at = now()")
    sender.refused = None
    await send_mails(ctx)
    assert await api.scalar("SELECT count(*) FROM mails") == 0
    assert (await confirm(api, sender.seen[2])).status_code == 204
    assert_problem(await confirm(api, sender.seen[0]), 422, "token_invalid")


@pytest.mark.parametrize(
    "address",
    ["=?utf-8?q??=@example.com", "=?utf-8?q?a=0ab?=@example.com", "=?utf-8?q?ada?=@example.com"],
    ids=["empty", "line-feed", "another"],
)
async def test_an_address_that_looks_like_an_encoded_word_gets_no_mail_and_holds_up_no_other(
    api: Api, ctx: dict[str, Any], tmp_path: Path, address: str
) -> None:
    wanted = {"email": address, "full_name": "Mallory", "password": PASSWORD}
    assert (await api.post("/v1/users", key=None, json=wanted)).status_code == 201
    user = await make_user(api.database)
    for one in (address, user.email):
        assert (await ask(api, one)).status_code == 202
    await send_mails(ctx)
    assert [mail["To"] for mail in mailed(tmp_path)] == [user.email]
    assert "no mail can be sent to this address" in await api.scalar("SELECT last_error FROM mails WHERE attempts = 1")


async def test_a_mail_is_sent_again_if_its_worker_died_before_it_noted_that(
    api: Api, ctx: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make_user(api.database)
    await ask(api, user.email)
    sender = Refusing(user.email, KeyboardInterrupt())
    monkeypatch.setattr(mails, "sender_of", lambda _: sender)
    with pytest.raises(KeyboardInterrupt):
        await send_mails(ctx)
    await api.execute("UPDATE mails SET due_at = now()")
    sender.refused = None
    await send_mails(ctx)
    assert len(sender.seen) == 2
    assert (await confirm(api, sender.seen[0])).status_code == 204
    assert_problem(await confirm(api, sender.seen[1]), 422, "token_invalid")


async def test_a_mail_that_could_not_be_sent_for_a_day_is_dropped_and_logged_as_an_error(
    api: Api, ctx: dict[str, Any], tmp_path: Path
) -> None:
    await reset_token(api, ctx, (await make_user(api.database)).email, tmp_path)
    await ask(api, (await make_user(api.database)).email)
    await api.execute("UPDATE mails SET created_at = now() - interval '25 hours'")
    await api.execute("UPDATE one_time_tokens SET expires_at = now() - interval '1 hour'")
    with capture_logs() as logged:
        await send_mails(ctx)
    assert [(line["level"], line["mails"]) for line in logged if "dropped" in line["event"]] == [("error", 1)]
    assert await api.scalar("SELECT (SELECT count(*) FROM mails) + (SELECT count(*) FROM one_time_tokens)") == 0
