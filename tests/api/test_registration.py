"""Registering where addresses are verified: the reply tells nobody who has an account."""

import asyncio
import email
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from services.settings import Settings
from services.users.passwords import Passwords
from tests.api.client import Api, assert_problem
from tests.factories import CONFIRMED, PASSWORD, make_user
from worker.context import open_worker
from worker.jobs.mails import send_mails
from worker.jobs.retention import prune_sessions

CONFIRM = "/v1/email-verifications/confirm"
ADA = {"email": "ada@example.com", "full_name": "Ada Lovelace", "password": "an analytical engine"}


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(
        update={
            "email_verification": True,
            "email_verification_link": "https://shop.example/confirm#{token}",
            "mail_url": SecretStr(f"file://{tmp_path}/out"),
            "sign_in_attempts": 4,
            "sign_in_first_pause": 60.0,
        }
    )


@pytest.fixture
async def ctx(settings: Settings) -> AsyncIterator[dict[str, Any]]:
    async with open_worker(settings) as worker:
        yield {"worker": worker}


async def register(api: Api, **more: str) -> httpx2.Response:
    return await api.post("/v1/users", key=None, json=ADA | more)


async def confirm(api: Api, token: str, password: str = ADA["password"]) -> httpx2.Response:
    return await api.post(CONFIRM, key=None, json={"token": token, "password": password})


async def mailed(ctx: dict[str, Any], tmp_path: Path) -> list[EmailMessage]:
    """All mails that were ever sent, in order."""
    await send_mails(ctx)
    files = sorted((tmp_path / "out").glob("*.eml"))
    return [email.message_from_bytes(file.read_bytes(), _class=EmailMessage) for file in files]


def token_in(message: EmailMessage) -> str:
    found = re.search(r"https://shop\.example/confirm#(\S+)", str(message.get_payload()))
    assert found is not None, message
    return found[1]


async def test_a_registration_is_finished_with_the_token_from_the_mail(
    api: Api, ctx: dict[str, Any], tmp_path: Path
) -> None:
    asked = await register(api)
    assert (asked.status_code, asked.text) == (202, "null")
    assert await api.scalar("SELECT count(*) FROM users") == 0
    assert (await api.sign_in(ADA["email"], ADA["password"])).status_code == 401
    (mail,) = await mailed(ctx, tmp_path)
    assert mail["To"] == ADA["email"]
    assert "within 24 hours" in str(mail.get_payload())
    token = token_in(mail)
    assert token not in await api.scalar("SELECT string_agg(one_time_tokens::text, '') FROM one_time_tokens")
    done = await confirm(api, token)
    assert done.status_code == 200, done.text
    assert (done.json()["email"], done.json()["full_name"], done.headers["etag"]) == (
        ADA["email"],
        ADA["full_name"],
        '"1"',
    )
    assert (await api.sign_in(ADA["email"], ADA["password"])).status_code == 200
    assert await api.scalar("SELECT count(*) FROM accounts WHERE user_id = :id", id=done.json()["id"]) == 1
    assert await api.scalar("SELECT count(*) FROM events WHERE type = 'user.registered'") == 1
    assert_problem(await confirm(api, token), 422, "token_invalid", pointers=["#/token"])
    assert await api.scalar("SELECT (SELECT count(*) FROM unverified_emails) + (SELECT count(*) FROM mails)") == 0


async def test_the_reply_is_the_same_for_an_address_that_is_taken_and_as_much_is_done(
    api: Api, ctx: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, deleted = await make_user(api.database, email="taken@example.com"), await make_user(api.database)
    await api.delete("/v1/users/me", by=deleted, json=CONFIRMED)
    hashed: list[str] = []
    hash_ = Passwords.hash

    async def spy(self: Passwords, password: str) -> str:
        hashed.append(password)
        return await hash_(self, password)

    monkeypatch.setattr(Passwords, "hash", spy)
    seen = []
    for address in ("free@example.com", "Taken@example.com", deleted.email):
        await api.execute("DELETE FROM failed_attempts")
        before = await api.everything()
        reply = await register(api, email=address)
        after = await api.everything()
        headers = {name: value for name, value in reply.headers.items() if name not in ("x-request-id", "ratelimit")}
        written = {table: after[table][0] - before[table][0] for table in after if after[table] != before[table]}
        seen.append((reply.status_code, reply.content, headers, hashed.copy(), written))
        hashed.clear()
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0] == 202
    assert seen[0][3] == [ADA["password"]]
    mails = {mail["To"]: str(mail.get_payload()) for mail in await mailed(ctx, tmp_path)}
    assert "confirm#" in mails["free@example.com"]
    for address in (taken.email, deleted.email):
        assert "with this address already, or there was one" in mails[address]
        assert "#" not in mails[address], "it has no token"
    weak = await register(api, email=taken.email, password="password123")
    assert_problem(weak, 422, "invalid_input", pointers=["#/password"])


async def test_a_mailbox_gets_one_mail_that_says_that_the_address_is_taken(
    api: Api, ctx: dict[str, Any], tmp_path: Path
) -> None:
    user = await make_user(api.database)
    for _ in range(3):
        assert (await register(api, email=user.email)).status_code == 202
    assert len(await mailed(ctx, tmp_path)) == 1
    assert await api.scalar("SELECT count(*) FROM mails") == 0
    await api.execute("DELETE FROM failed_attempts")
    await api.execute("UPDATE unverified_emails SET expires_at = now()")
    assert (await register(api, email=user.email)).status_code == 202
    assert len(await mailed(ctx, tmp_path)) == 2, "a day later"


@pytest.mark.parametrize("is_taken", [True, False])
async def test_registrations_of_one_address_have_to_wait_whether_it_is_taken_or_not(api: Api, is_taken: bool) -> None:
    address = (await make_user(api.database)).email if is_taken else "free@example.com"
    replies = [await register(api, email=address) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [202, 202, 202, 429]
    assert_problem(replies[-1], 429, "too_many_attempts")


async def test_the_owner_of_the_mailbox_wins(api: Api, ctx: dict[str, Any], tmp_path: Path) -> None:
    await register(api, full_name="Mallory", password="chosen by a thief")
    await register(api)
    of_thief, own = [token_in(mail) for mail in await mailed(ctx, tmp_path)]
    refused = await confirm(api, of_thief)
    assert_problem(refused, 403, "wrong_password")
    assert await api.scalar("SELECT count(*) FROM users") == 0
    assert (await confirm(api, own)).status_code == 200
    assert (await api.sign_in(ADA["email"], "chosen by a thief")).status_code == 401
    late = await confirm(api, of_thief, "chosen by a thief")
    assert_problem(late, 422, "token_invalid", pointers=["#/token"])


async def test_passwords_for_a_token_are_counted(api: Api, ctx: dict[str, Any], tmp_path: Path) -> None:
    await register(api)
    (mail,) = await mailed(ctx, tmp_path)
    replies = [await confirm(api, token_in(mail), f"guess number {n}") for n in range(5)]
    assert [reply.status_code for reply in replies] == [403] * 4 + [429]


async def test_of_simultaneous_confirmations_one_succeeds(api: Api, ctx: dict[str, Any], tmp_path: Path) -> None:
    await register(api)
    (mail,) = await mailed(ctx, tmp_path)
    replies = await asyncio.gather(*[confirm(api, token_in(mail)) for _ in range(4)])
    assert sorted(reply.status_code for reply in replies) == [200] + [422] * 3
    assert await api.scalar("SELECT count(*) FROM users") == 1


async def test_an_address_that_was_taken_since_the_mail_is_refused(
    api: Api, ctx: dict[str, Any], tmp_path: Path
) -> None:
    await register(api)
    (mail,) = await mailed(ctx, tmp_path)
    await make_user(api.database, email=ADA["email"])
    assert_problem(await confirm(api, token_in(mail)), 409, "already_exists", pointers=["#/email"])


@pytest.mark.parametrize(
    "spoil",
    ["UPDATE one_time_tokens SET expires_at = now()", "DELETE FROM unverified_emails", "DELETE FROM one_time_tokens"],
)
async def test_a_token_that_is_no_longer_valid_is_refused(
    api: Api, ctx: dict[str, Any], tmp_path: Path, spoil: str
) -> None:
    await register(api)
    (mail,) = await mailed(ctx, tmp_path)
    await api.execute(spoil)
    assert_problem(await confirm(api, token_in(mail)), 422, "token_invalid", pointers=["#/token"])
    assert_problem(await confirm(api, "x" * 43), 422, "token_invalid", pointers=["#/token"])


async def test_what_is_not_confirmed_in_time_is_deleted(api: Api, ctx: dict[str, Any], tmp_path: Path) -> None:
    await register(api)
    await mailed(ctx, tmp_path)
    await register(api, email="bob@example.com")
    await prune_sessions(ctx)
    assert await api.scalar("SELECT count(*) FROM unverified_emails") == 2
    expired = "UPDATE unverified_emails SET expires_at = now() - CAST(:age AS interval)"
    await api.execute(expired, age=timedelta(seconds=1))
    await prune_sessions(ctx)
    left = "SELECT (SELECT count(*) FROM unverified_emails) + (SELECT count(*) FROM one_time_tokens)"
    assert await api.scalar(f"{left} + (SELECT count(*) FROM mails)") == 0


async def test_another_address_counts_once_it_is_confirmed_and_the_former_one_is_told(
    api: Api, ctx: dict[str, Any], tmp_path: Path
) -> None:
    user = await make_user(api.database, email="old@example.com")
    changes = {"email": "New@example.com", "full_name": "Another Name", **CONFIRMED}
    asked = await api.patch("/v1/users/me", by=user, version=1, json=changes)
    assert (asked.status_code, asked.json()["email"], asked.json()["full_name"]) == (
        200,
        "old@example.com",
        "Another Name",
    )
    assert (await api.sign_in("new@example.com")).status_code == 401
    (mail,) = await mailed(ctx, tmp_path)
    assert mail["To"] == "new@example.com"
    done = await confirm(api, token_in(mail), PASSWORD)
    assert (done.status_code, done.json()["email"]) == (200, "new@example.com")
    assert (await api.sign_in("new@example.com")).status_code == 200
    told = (await mailed(ctx, tmp_path))[-1]
    assert (told["To"], told["Subject"]) == ("old@example.com", "Your e-mail address was changed")
    who = "SELECT concat_ws(' ', actor, user_id) FROM audit_log WHERE action = 'user.email_changed'"
    assert await api.scalar(who) == f"{user.actor} {user.id}"
    assert await api.scalar("SELECT actor FROM events WHERE type = 'user.email_changed'") == user.actor
    assert await api.scalar("SELECT count(*) FROM events WHERE type = 'user.email_changed'") == 1


async def test_a_change_to_an_address_that_is_taken_looks_like_any_other(
    api: Api, ctx: dict[str, Any], tmp_path: Path
) -> None:
    other = await make_user(api.database, email="taken@example.com")
    seen: list[Any] = []
    for address in ("free@example.com", other.email):
        user = await make_user(api.database, email="me@example.com" if not seen else None)
        reply = await api.patch("/v1/users/me", by=user, version=1, json={"email": address, **CONFIRMED})
        assert reply.json()["email"] == user.email
        headers = {name for name in reply.headers if name != "x-request-id"}
        seen.append((reply.status_code, headers, reply.json()["version"]))
    assert seen[0] == seen[1]
    mails = {mail["To"]: str(mail.get_payload()) for mail in await mailed(ctx, tmp_path)}
    assert "with this address already, or there was one" in mails[other.email]
    assert "confirm#" in mails["free@example.com"]


async def test_a_token_for_another_address_is_void_once_the_password_is_another_one(
    api: Api, ctx: dict[str, Any], tmp_path: Path
) -> None:
    user = await make_user(api.database)
    await api.patch("/v1/users/me", by=user, version=1, json={"email": "thief@example.com", **CONFIRMED})
    (mail,) = await mailed(ctx, tmp_path)
    wanted = {"password": "another one of mine", **CONFIRMED}
    assert (await api.patch("/v1/users/me", by=user, version=1, json=wanted)).status_code == 200
    assert_problem(await confirm(api, token_in(mail), PASSWORD), 403, "wrong_password")


async def test_sending_the_address_that_one_has_sends_no_mail(api: Api, ctx: dict[str, Any], tmp_path: Path) -> None:
    user = await make_user(api.database)
    for version in range(1, 6):
        changes = {"email": user.email, "full_name": f"Name {version}"}
        assert (await api.patch("/v1/users/me", by=user, version=version, json=changes)).status_code == 200
    assert await mailed(ctx, tmp_path) == []
