"""An access token alone does not take an account over: that needs the password."""

import asyncio
from typing import Any

import pytest

from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.passwords import Passwords
from tests.api.client import Api, assert_problem
from tests.factories import CONFIRMED, HASHED, PASSWORD, make_user

NEW = "a password nobody has"
WRONG = {"current_password": "not the password"}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    # A first pause that lasts beyond the test, however slow the machine.
    return settings.model_copy(update={"sign_in_first_pause": 60.0})


def bearing(reply: Any) -> dict[str, str]:
    return {"Authorization": f"Bearer {reply.json()['access_token']}"}


@pytest.mark.parametrize("changes", [{"password": NEW}, {"email": "thief@example.com"}])
async def test_a_token_alone_changes_neither_password_nor_address(api: Api, changes: dict[str, str]) -> None:
    user = await make_user(api.database)
    before = await api.scalar("SELECT users::text FROM users")
    missing = await api.patch("/v1/users/me", by=user, version=1, json=changes)
    assert_problem(missing, 422, "invalid_input", pointers=["#/current_password"])
    wrong = await api.patch("/v1/users/me", by=user, version=1, json={**changes, **WRONG})
    assert_problem(wrong, 403, "wrong_password")
    assert await api.scalar("SELECT users::text FROM users") == before
    right = await api.patch("/v1/users/me", by=user, version=1, json={**changes, **CONFIRMED})
    assert right.status_code == 200


async def test_a_name_and_the_same_address_need_no_password(api: Api) -> None:
    user = await make_user(api.database)
    reply = await api.patch("/v1/users/me", by=user, version=1, json={"full_name": "New", "email": user.email})
    assert (reply.status_code, reply.json()["full_name"]) == (200, "New")


async def test_a_token_alone_does_not_delete_the_user(api: Api) -> None:
    user = await make_user(api.database)
    assert_problem(await api.delete("/v1/users/me", by=user), 422, "invalid_input")
    assert_problem(await api.delete("/v1/users/me", by=user, json={}), 422, "invalid_input")
    assert_problem(await api.delete("/v1/users/me", by=user, json=WRONG), 403, "wrong_password")
    assert (await api.get("/v1/users/me", by=user)).status_code == 200
    assert (await api.delete("/v1/users/me", by=user, json=CONFIRMED)).status_code == 204


async def test_a_right_password_does_not_count_even_if_the_change_is_refused(api: Api) -> None:
    user = await make_user(api.database)
    taken = {"email": (await make_user(api.database)).email, **CONFIRMED}
    for _ in range(api.settings.sign_in_attempts + 1):
        refused = await api.patch("/v1/users/me", by=user, version=1, json=taken)
        assert_problem(refused, 409, "already_exists")


async def test_a_stolen_token_cannot_be_used_to_guess_the_password(api: Api) -> None:
    user = await make_user(api.database)
    attempts = api.settings.sign_in_attempts
    statuses = []
    for n in range(attempts + 1):
        guess = {"current_password": f"guess {n}"}
        if n % 2:
            reply = await api.delete("/v1/users/me", by=user, json=guess)
        else:
            reply = await api.patch("/v1/users/me", by=user, version=1, json={"password": NEW, **guess})
        statuses.append(reply.status_code)
    assert statuses == [403] * attempts + [429]
    assert_problem(await api.delete("/v1/users/me", by=user, json=CONFIRMED), 429, "too_many_attempts")
    assert (await api.sign_in(user.email)).status_code == 200, "signing in is counted apart"


async def test_a_new_password_ends_all_other_sessions(api: Api) -> None:
    user = await make_user(api.database)
    here, elsewhere = await api.sign_in(user.email), await api.sign_in(user.email)
    changes = {"password": NEW, **CONFIRMED}
    changed = await api.patch("/v1/users/me", headers=bearing(here), version=1, json=changes)
    assert changed.status_code == 200
    assert (await api.get("/v1/users/me", headers=bearing(here))).status_code == 200
    assert (await api.get("/v1/users/me", headers=bearing(elsewhere))).status_code == 401
    assert (await api.get("/v1/users/me", by=user)).status_code == 401
    form = {"grant_type": "refresh_token", "refresh_token": elsewhere.json()["refresh_token"]}
    assert (await api.client.post("/v1/token", data=form)).status_code == 401
    assert await api.scalar("SELECT count(*) FROM sessions WHERE end_reason = 'password_changed'") == 2
    renamed = await api.patch("/v1/users/me", headers=bearing(here), version=2, json={"full_name": "New"})
    again = await api.sign_in(user.email, NEW)
    assert (renamed.status_code, again.status_code) == (200, 200)
    assert (await api.get("/v1/users/me", headers=bearing(here))).status_code == 200, "a name ends none"


@pytest.mark.parametrize(
    ("password", "fault"),
    [
        ("1234567890", "common"),
        ("Qwertyuiop", "common"),
        ("Password123!", "common"),
        ("12iloveyou#", "common"),
        ("aaaaaaaaaaaa", "different characters"),
        ("abababababab", "different characters"),
        ("abcdefghijkl", "sequence"),
        ("9876543210", "sequence"),
        ("ada.lovelace@example.com", "your name or your address"),
        ("Ada.Lovelace1", "your name or your address"),
        ("countess lovelace!", "your name or your address"),
    ],
)
async def test_a_password_that_is_easy_to_guess_is_refused(api: Api, password: str, fault: str) -> None:
    wanted = {"email": "ada.lovelace@example.com", "full_name": "Countess Lovelace"}
    refused = await api.post("/v1/users", key=None, json={**wanted, "password": password})
    problem = assert_problem(refused, 422, "invalid_input", pointers=["#/password"])
    assert fault in problem["errors"][0]["detail"]
    assert password not in refused.text
    user = await make_user(api.database, email=wanted["email"], full_name=wanted["full_name"])
    changing = await api.patch("/v1/users/me", by=user, version=1, json={"password": password, **CONFIRMED})
    assert_problem(changing, 422, "invalid_input", pointers=["#/password"])


@pytest.mark.parametrize(
    "password", ["long enough", "another one!", "0b6d1f4e2a", "password-of-a-whale", "31415926535897"]
)
async def test_other_passwords_of_ten_characters_are_accepted(api: Api, password: str) -> None:
    wanted = {"email": "ada@example.com", "full_name": "Ada", "password": password}
    assert (await api.post("/v1/users", key=None, json=wanted)).status_code == 201


@pytest.fixture
def outdated(settings: Settings) -> Settings:
    """The installation has raised the cost of hashes since."""
    return settings.model_copy(update={"argon2_memory_kib": 64})


async def test_a_sign_in_that_upgrades_a_hash_does_not_undo_a_new_password(
    api: Api, outdated: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make_user(api.database)
    api.app.state.waybill.passwords._hasher = Passwords(outdated)._hasher
    upgrading, go_on = asyncio.Event(), asyncio.Event()
    plain_hash = Passwords.hash

    async def slow_hash(passwords: Passwords, password: str) -> str:
        if password == PASSWORD:
            upgrading.set()
            await go_on.wait()
        return await plain_hash(passwords, password)

    monkeypatch.setattr(Passwords, "hash", slow_hash)
    late = asyncio.create_task(api.sign_in(user.email))
    async with asyncio.timeout(20):
        await upgrading.wait()
        changes = {"password": NEW, **CONFIRMED}
        assert (await api.patch("/v1/users/me", by=user, version=1, json=changes)).status_code == 200
        go_on.set()
        assert_problem(await late, 401, "unauthenticated")
    assert (await api.sign_in(user.email, NEW)).status_code == 200
    assert (await api.sign_in(user.email, PASSWORD)).status_code == 401


async def test_a_sign_in_with_the_old_password_begins_no_session_that_outlives_the_change(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = await make_user(api.database)
    checked, go_on = asyncio.Event(), asyncio.Event()
    plain_matches = Passwords.matches

    async def slow_matches(passwords: Passwords, hashed: str | None, password: str) -> bool:
        right = await plain_matches(passwords, hashed, password)
        if asyncio.current_task() is late and not checked.is_set():
            checked.set()
            await go_on.wait()
        return right

    monkeypatch.setattr(Passwords, "matches", slow_matches)
    late = asyncio.create_task(api.sign_in(user.email))
    async with asyncio.timeout(20):
        await checked.wait()
        changes = {"password": NEW, **CONFIRMED}
        assert (await api.patch("/v1/users/me", by=user, version=1, json=changes)).status_code == 200
        go_on.set()
        assert_problem(await late, 401, "unauthenticated")
    assert await api.scalar("SELECT count(*) FROM sessions WHERE ended_at IS NULL AND address IS NOT NULL") == 0


async def test_a_sign_in_upgrades_the_hash_and_two_at_once_both_succeed(api: Api, outdated: Settings) -> None:
    user = await make_user(api.database)
    api.app.state.waybill.passwords._hasher = Passwords(outdated)._hasher
    replies = await asyncio.gather(*[api.sign_in(user.email) for _ in range(4)])
    assert [reply.status_code for reply in replies] == [200] * 4
    stored = await api.scalar("SELECT hashed_password FROM users")
    assert stored != HASHED
    assert "m=64," in stored
    async with UnitOfWork(api.database.write) as uow:
        found = await uow.users.get(user.id)
    assert found is not None
    assert found.version == 1, "a client's If-Match still holds"
