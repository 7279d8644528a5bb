"""The second factor of a sign-in."""

import asyncio
import hashlib
from base64 import b32encode
from typing import Any

import pytest

from services.settings import Settings
from services.users.models import User
from services.users.passwords import Passwords
from services.users.totp.codes import typed
from tests.api.client import Api, assert_problem
from tests.api.second_factors import PATH, enrol, sign_in, start, time_passes
from tests.factories import CONFIRMED, PASSWORD, make_user

ATTEMPTS = 4


@pytest.fixture
def settings(settings: Settings) -> Settings:
    # A first pause that lasts beyond the test, however slow the machine.
    return settings.model_copy(update={"sign_in_attempts": ATTEMPTS, "sign_in_first_pause": 60.0})


@pytest.fixture
async def user(api: Api) -> User:
    return await make_user(api.database)


async def test_who_has_set_up_an_app_signs_in_with_the_password_and_a_code(api: Api, user: User) -> None:
    before = await api.get(PATH, by=user)
    assert before.json() == {"totp_since": None, "required": False, "recovery_codes_left": 0}
    app = await enrol(api, user)
    assert (await sign_in(api, user, app.code())).status_code == 200
    after = (await api.get(PATH, by=user)).json()
    assert after["totp_since"] is not None
    assert after["recovery_codes_left"] == 10
    assert_problem(await api.post(PATH, by=user, key=None, json=CONFIRMED), 409, "conflict")


async def test_the_secret_is_shown_once_and_stored_encrypted(api: Api, user: User) -> None:
    reply = await api.post(PATH, by=user, key=None, json=CONFIRMED)
    assert reply.headers["cache-control"] == "no-store"
    secret = reply.json()["secret"]
    assert f"secret={secret}" in reply.json()["otpauth_uri"]
    assert secret not in (await api.get(PATH, by=user)).text
    app = await start(api, user)
    assert app.secret not in await api.scalar("SELECT sealed FROM totp_secrets")
    assert b32encode(app.secret).decode() != secret, "asking again makes another secret"


async def test_an_app_that_is_not_confirmed_does_not_count(api: Api, user: User) -> None:
    app = await start(api, user)
    assert (await sign_in(api, user)).status_code == 200
    wrong = await api.post(f"{PATH}/confirm", by=user, key=None, json={"otp": app.wrong_code()})
    assert_problem(wrong, 403, "wrong_code", pointers=["#/otp"])
    assert (await sign_in(api, user)).status_code == 200
    other = await make_user(api.database)
    unasked = await api.post(f"{PATH}/confirm", by=other, key=None, json={"otp": "123456"})
    assert_problem(unasked, 409, "conflict")


async def test_setting_up_an_app_needs_the_password(api: Api, user: User) -> None:
    missing = await api.post(PATH, by=user, key=None, json={})
    assert_problem(missing, 422, "invalid_input", pointers=["#/current_password"])
    wrong = await api.post(PATH, by=user, key=None, json={"current_password": "not the password"})
    assert_problem(wrong, 403, "wrong_password")
    assert await api.scalar("SELECT count(*) FROM totp_secrets") == 0


async def test_the_right_password_without_a_code_is_told_apart_only_then(api: Api, user: User) -> None:
    app = await enrol(api, user)
    assert_problem(await sign_in(api, user), 401, "otp_required")
    assert_problem(await sign_in(api, user, app.wrong_code()), 401, "otp_invalid")
    assert_problem(await sign_in(api, user, password="a wrong password"), 401, "unauthenticated")
    wrong_both = await sign_in(api, user, app.code(), password="a wrong password")
    assert_problem(wrong_both, 401, "unauthenticated")
    assert await api.scalar("SELECT last_step IS NOT NULL FROM totp_secrets"), "the code was not looked at"
    assert (await sign_in(api, user, app.code())).status_code == 200


async def test_an_unknown_user_costs_as_many_hashes_as_a_wrong_password(
    api: Api, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await enrol(api, user)
    checked: list[str] = []
    verify = Passwords._verify

    def spy(self: Passwords, hashed: str, password: str) -> bool:
        checked.append(password)
        return verify(self, hashed, password)

    monkeypatch.setattr(Passwords, "_verify", spy)
    replies = []
    for email in (user.email, "nobody@example.com"):
        form = {"username": email, "password": "a wrong password", "otp": app.code()}
        replies.append(await api.client.post("/v1/token", data=form))
        assert checked == ["a wrong password"]
        checked.clear()
    assert [reply.status_code for reply in replies] == [401, 401]
    known, unknown = (reply.json() | {"request_id": ""} for reply in replies)
    assert known == unknown


async def test_a_code_works_once_and_so_does_no_earlier_one(api: Api, user: User) -> None:
    app = await start(api, user)
    first = app.code()
    assert (await api.post(f"{PATH}/confirm", by=user, key=None, json={"otp": first})).status_code == 200
    assert_problem(await sign_in(api, user, first), 401, "otp_invalid")
    following = app.code(1)
    assert (await sign_in(api, user, following)).status_code == 200
    assert_problem(await sign_in(api, user, following), 401, "otp_invalid")
    assert_problem(await sign_in(api, user, app.code()), 401, "otp_invalid")
    await time_passes(api)
    assert (await sign_in(api, user, app.code())).status_code == 200


@pytest.mark.parametrize("kind", ["of the app", "recovery"])
async def test_of_simultaneous_uses_of_one_code_one_succeeds(api: Api, user: User, kind: str) -> None:
    app = await enrol(api, user)
    code = app.code() if kind == "of the app" else app.recovery_codes[3]
    replies = await asyncio.gather(*[sign_in(api, user, code) for _ in range(ATTEMPTS - 1)])
    assert sorted(reply.status_code for reply in replies) == [200] + [401] * (ATTEMPTS - 2)
    assert await api.scalar("SELECT count(*) FROM refresh_tokens") == 1


async def test_wrong_codes_after_the_right_password_are_counted(api: Api, user: User) -> None:
    app = await enrol(api, user)
    for _ in range(ATTEMPTS):
        # Asking what is missing takes nothing back.
        assert_problem(await sign_in(api, user), 401, "otp_required")
        assert_problem(await sign_in(api, user, app.wrong_code()), 401, "otp_invalid")
    paused = await sign_in(api, user, app.code())
    assert_problem(paused, 429, "too_many_attempts")
    assert int(paused.headers["retry-after"]) > 0
    assert_problem(await sign_in(api, user), 429, "too_many_attempts")
    await api.execute("UPDATE failed_attempts SET locked_until = now()")
    assert (await sign_in(api, user, app.code())).status_code == 200
    assert await api.scalar("SELECT count(*) FROM failed_attempts") == 1, "those of the IP address stay"


async def test_being_asked_for_a_code_is_no_failed_attempt(api: Api, user: User) -> None:
    await enrol(api, user)
    replies = [await sign_in(api, user) for _ in range(ATTEMPTS + 2)]
    assert {reply.json()["code"] for reply in replies} == {"otp_required"}


@pytest.mark.parametrize("method", ["DELETE", "POST"])
async def test_wrong_codes_of_a_signed_in_user_are_counted_too(api: Api, user: User, method: str) -> None:
    app = await enrol(api, user)
    path = PATH if method == "DELETE" else f"{PATH}/recovery-codes"
    body = CONFIRMED | {"otp": app.wrong_code()}
    for _ in range(ATTEMPTS):
        assert_problem(await api.request(method, path, by=user, json=body), 403, "wrong_code")
    refused = await api.request(method, path, by=user, json=CONFIRMED | {"otp": app.code()})
    assert_problem(refused, 429, "too_many_attempts")


async def test_recovery_codes_work_once_each_and_are_stored_hashed(api: Api, user: User) -> None:
    app = await enrol(api, user)
    first, second = app.recovery_codes[:2]
    stored = await api.scalar("SELECT array_agg(hash) FROM recovery_codes")
    assert {hashlib.sha256(typed(code).encode()).digest() for code in app.recovery_codes} == set(stored)
    assert (await sign_in(api, user, first)).status_code == 200
    assert_problem(await sign_in(api, user, first), 401, "otp_invalid")
    assert (await sign_in(api, user, second.lower().replace("-", " "))).status_code == 200
    assert (await api.get(PATH, by=user)).json()["recovery_codes_left"] == 8
    who = "SELECT array_agg(concat_ws(' ', actor, user_id)) FROM audit_log WHERE action = 'user.recovery_code_used'"
    assert await api.scalar(who) == [f"{user.actor} {user.id}"] * 2
    stranger = await make_user(api.database)
    await enrol(api, stranger)
    assert_problem(await sign_in(api, stranger, app.recovery_codes[2]), 401, "otp_invalid")


async def test_new_recovery_codes_replace_the_old_ones(api: Api, user: User) -> None:
    app = await enrol(api, user)
    body = CONFIRMED | {"otp": app.recovery_codes[0]}
    reply = await api.post(f"{PATH}/recovery-codes", by=user, key=None, json=body)
    assert reply.headers["cache-control"] == "no-store"
    new = reply.json()["recovery_codes"]
    assert not set(new) & set(app.recovery_codes)
    assert_problem(await sign_in(api, user, app.recovery_codes[1]), 401, "otp_invalid")
    assert (await sign_in(api, user, new[0])).status_code == 200


async def test_the_second_factor_is_removed_with_the_password_and_a_code(api: Api, user: User) -> None:
    nothing = await api.delete(PATH, by=user, json=CONFIRMED | {"otp": "123456"})
    assert_problem(nothing, 409, "conflict")
    app = await enrol(api, user)
    no_password = {"current_password": "wrong password", "otp": app.code()}
    assert_problem(await api.delete(PATH, by=user, json=no_password), 403, "wrong_password")
    assert_problem(await api.delete(PATH, by=user, json=CONFIRMED), 422, "invalid_input", pointers=["#/otp"])
    other = (await sign_in(api, user, app.code())).json()["access_token"]
    await time_passes(api)
    assert (await api.delete(PATH, by=user, json=CONFIRMED | {"otp": app.code()})).status_code == 204
    assert (await sign_in(api, user)).status_code == 200
    assert await api.scalar("SELECT (SELECT count(*) FROM totp_secrets) + (SELECT count(*) FROM recovery_codes)") == 0
    ended = await api.get("/v1/users/me", headers={"Authorization": f"Bearer {other}"})
    assert ended.status_code == 401
    assert (await api.get("/v1/users/me", by=user)).status_code == 200, "this session stays"


async def test_sessions_that_were_begun_without_a_code_end(api: Api, user: User) -> None:
    token = (await sign_in(api, user)).json()["access_token"]
    await enrol(api, user)
    assert (await api.get("/v1/users/me", headers={"Authorization": f"Bearer {token}"})).status_code == 401
    assert (await api.get("/v1/users/me", by=user)).status_code == 200
    assert await api.scalar("SELECT count(*) FROM sessions WHERE end_reason = 'factor_changed'") == 1


async def test_a_sign_in_without_a_code_begins_no_session_after_an_app_was_confirmed(
    api: Api, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    matches = Passwords.matches
    enrolled: list[Any] = []

    async def confirm_meanwhile(self: Passwords, hashed: str | None, password: str) -> bool:
        right = await matches(self, hashed, password)
        monkeypatch.setattr(Passwords, "matches", matches)
        enrolled.append(await enrol(api, user))
        return right

    monkeypatch.setattr(Passwords, "matches", confirm_meanwhile)
    assert_problem(await sign_in(api, user), 401, "otp_required")
    assert len(enrolled) == 1
    assert await api.scalar("SELECT count(*) FROM sessions WHERE ended_at IS NULL") == 1, "that of the tests"


async def test_a_form_with_a_strange_code_is_refused(api: Api, user: User) -> None:
    await enrol(api, user)
    for strange in ("", "\x00", "١٢٣٤٥٦", "-- --", "' OR 1=1"):
        reply = await sign_in(api, user, strange)
        assert reply.json()["code"] in {"otp_invalid", "otp_required"}, strange
        await api.execute("DELETE FROM failed_attempts")
    assert_problem(await sign_in(api, user, "x" * 65), 422, "invalid_input", pointers=["#/otp"])


async def test_a_user_without_a_second_factor_may_send_a_code(api: Api, user: User) -> None:
    assert (await sign_in(api, user, "123456", PASSWORD)).status_code == 200
