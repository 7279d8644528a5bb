"""Someone who guesses passwords has to wait ever longer, and cannot keep others from signing in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import httpx2
import pytest

from services.app import create_app
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.attempts.service import FORGOTTEN_ATTEMPTS
from services.users.models import User
from services.users.passwords import Passwords
from tests.api.client import Api, assert_problem
from tests.factories import PASSWORD, make_user

FREE = 3
OF_ADDRESS = 8
LATEST_PAUSE = "SELECT extract(epoch FROM max(locked_until - updated_at)) FROM failed_attempts"
STRANGER, HOME = "203.0.113.7", "198.51.100.1"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    # A first pause that lasts beyond the test, however slow the machine.
    limits = {"sign_in_attempts": FREE, "sign_in_address_attempts": OF_ADDRESS, "sign_in_first_pause": 60.0}
    return settings.model_copy(update=limits | {"sign_in_max_pause": 3600.0})


@pytest.fixture
async def user(api: Api) -> User:
    return await make_user(api.database)


@asynccontextmanager
async def at(api: Api, address: str) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(api.app, raise_app_exceptions=False, client=(address, 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://api.test") as client:
        yield client


async def sign_in(api: Api, email: str, password: str = PASSWORD, *, address: str = STRANGER) -> httpx2.Response:
    async with at(api, address) as client:
        return await client.post("/v1/token", data={"username": email, "password": password})


async def guess(api: Api, email: str, times: int, *, address: str = STRANGER) -> list[int]:
    return [(await sign_in(api, email, f"guess number {n}", address=address)).status_code for n in range(times)]


async def the_pause_is_over(api: Api) -> None:
    await api.execute("UPDATE failed_attempts SET locked_until = now()")


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passwords that were compared with a hash."""
    seen: list[str] = []
    verify = Passwords._verify

    def spy(self: Passwords, hashed: str, password: str) -> bool:
        seen.append(password)
        return verify(self, hashed, password)

    monkeypatch.setattr(Passwords, "_verify", spy)
    return seen


async def test_the_pauses_of_an_account_double_up_to_the_longest_pause(
    api: Api, user: User, checked: list[str]
) -> None:
    assert await guess(api, user.email, FREE) == [401] * FREE
    pauses = []
    for _ in range(8):
        before = len(checked)
        refused = await sign_in(api, user.email)
        detail = assert_problem(refused, 429, "too_many_attempts")["detail"]
        wait = int(refused.headers["retry-after"])
        assert f"{wait} s" in detail
        assert len(checked) == before, "a locked account costs no hash"
        pauses.append(await api.scalar(LATEST_PAUSE))
        assert pauses[-1] - 50 < wait <= pauses[-1]
        await the_pause_is_over(api)
        # From a new address each time, which has no failures.
        assert await guess(api, user.email, 1, address=f"203.0.113.{100 + len(pauses)}") == [401]
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    await the_pause_is_over(api)
    assert (await sign_in(api, user.email, address=HOME)).status_code == 200


async def test_the_right_password_forgets_the_accounts_failures(api: Api, user: User) -> None:
    for _ in range(3):
        assert await guess(api, user.email, FREE - 1) == [401] * (FREE - 1)
        assert (await sign_in(api, user.email, address=HOME)).status_code == 200
        # So that the address stays one from which the user has not signed in before.
        await api.execute("DELETE FROM sessions WHERE address IS NOT NULL")


async def test_an_unknown_address_is_answered_like_a_known_one(api: Api, user: User, checked: list[str]) -> None:
    answers: dict[str, list[Any]] = {}
    for email, address in ((user.email, "192.0.2.1"), ("nobody@example.com", "192.0.2.2")):
        replies = [await sign_in(api, email, "a wrong password", address=address) for _ in range(FREE + 1)]
        answers[email] = [(reply.status_code, reply.json()["code"], reply.json()["detail"]) for reply in replies]
    assert answers[user.email] == answers["nobody@example.com"]
    assert [status for status, *_ in answers[user.email]] == [401] * FREE + [429]
    assert len(checked) == 2 * FREE, "a hash is computed for both"


async def test_simultaneous_guesses_are_counted_before_they_are_checked(
    api: Api, user: User, checked: list[str]
) -> None:
    guesses = [sign_in(api, user.email, f"guess {n}", address=f"203.0.113.{n}") for n in range(20)]
    statuses = [reply.status_code for reply in await asyncio.gather(*guesses)]
    assert sorted(statuses) == [401] * FREE + [429] * (20 - FREE)
    assert len(checked) == FREE


async def test_an_attempt_that_began_before_another_one_is_not_held_up_by_it(api: Api) -> None:
    subject = b"s" * 32
    async with UnitOfWork(api.database.write) as early, UnitOfWork(api.database.write) as late:
        await early.attempts.is_known("x", "y")
        for work in (late, early):
            assert await work.attempts.take(subject, FREE, 1, 300) is None
            await work.attempts.give_back(subject)
            assert await work.attempts.take(subject, FREE, 1, 300) is None
            await work.commit()


async def test_strangers_cannot_lock_a_user_out_of_the_address_they_sign_in_from(api: Api, user: User) -> None:
    token = (await sign_in(api, user.email, address=HOME)).json()
    assert await guess(api, user.email, FREE + 2) == [401] * FREE + [429] * 2
    assert (await sign_in(api, user.email, address="192.0.2.9")).status_code == 429, "an address that is new"
    # What the user has is unaffected, and so is a sign-in from where they were signed in before.
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    assert (await api.get("/v1/users/me", headers=headers)).status_code == 200
    form = {"grant_type": "refresh_token", "refresh_token": token["refresh_token"]}
    assert (await api.client.post("/v1/token", data=form)).status_code == 200
    await api.execute(f"UPDATE sessions SET address = '{HOME}' WHERE address IS NOT NULL")
    assert (await sign_in(api, user.email, address=HOME)).status_code == 200
    assert (await sign_in(api, user.email, address="192.0.2.9")).status_code == 429, "the others still wait"
    # That address has to wait as well if the guesses come from there.
    assert await guess(api, user.email, FREE + 1, address=HOME) == [401] * FREE + [429]


@pytest.mark.parametrize(("first", "second"), [(STRANGER, STRANGER), ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9")])
async def test_an_address_that_guesses_at_many_accounts_pauses(api: Api, user: User, first: str, second: str) -> None:
    for n in range(OF_ADDRESS):
        assert await guess(api, f"user-{n}@example.com", 1, address=first) == [401]
    assert_problem(await sign_in(api, user.email, address=second), 429, "too_many_attempts")
    for elsewhere in (HOME, "2001:db8:1:3::1"):
        assert (await sign_in(api, user.email, address=elsewhere)).status_code == 200


async def test_ipv4_addresses_that_a_dual_stack_socket_writes_as_ipv6_are_told_apart(api: Api, user: User) -> None:
    for n in range(OF_ADDRESS):
        assert await guess(api, f"user-{n}@example.com", 1, address=f"::ffff:{STRANGER}") == [401]
    assert (await sign_in(api, user.email, address=f"::ffff:{HOME}")).status_code == 200
    assert await api.scalar("SELECT count(*) FROM sessions WHERE address = :home", home=HOME) == 1
    assert_problem(await sign_in(api, user.email, address=STRANGER), 429, "too_many_attempts")


async def test_signing_in_to_ones_own_account_does_not_wipe_out_an_addresss_failures(api: Api, user: User) -> None:
    for n in range(OF_ADDRESS - 1):
        assert await guess(api, f"user-{n}@example.com", 1) == [401]
        assert (await sign_in(api, user.email)).status_code == 200
    assert await guess(api, "one-more@example.com", 1) == [401]
    assert (await sign_in(api, user.email)).status_code == 429
    assert await api.scalar("SELECT max(failures) FROM failed_attempts") == OF_ADDRESS


async def test_many_right_sign_ins_from_one_address_are_not_held_up(api: Api, user: User) -> None:
    statuses = [(await sign_in(api, user.email)).status_code for _ in range(2 * OF_ADDRESS)]
    assert statuses == [200] * 2 * OF_ADDRESS


async def test_after_an_hour_without_a_failure_the_count_starts_again(api: Api, user: User) -> None:
    assert await guess(api, user.email, FREE + 1) == [401] * FREE + [429]
    await api.execute("UPDATE failed_attempts SET updated_at = now() - interval '61 minutes', locked_until = now()")
    assert await guess(api, user.email, FREE + 1) == [401] * FREE + [429]


async def test_right_passwords_do_not_keep_an_addresss_failures_from_being_forgotten(api: Api, user: User) -> None:
    for n in range(OF_ADDRESS):
        assert await guess(api, f"user-{n}@example.com", 1) == [401]
    await the_pause_is_over(api)
    for _ in range(2):
        assert (await sign_in(api, user.email)).status_code == 200
        await api.execute(
            "UPDATE failed_attempts SET updated_at = updated_at - interval '40 minutes',"
            " failed_before = failed_before - interval '40 minutes'",
        )
    assert await guess(api, "one-more@example.com", 2) == [401, 401]


async def test_all_processes_count_together(api: Api, user: User) -> None:
    other = create_app(api.settings)
    async with other.router.lifespan_context(other):
        transport = httpx2.ASGITransport(other, raise_app_exceptions=False, client=(STRANGER, 1))
        async with httpx2.AsyncClient(transport=transport, base_url="http://other.test") as client:
            statuses = await guess(api, user.email, FREE - 1)
            for password in ("a wrong one", PASSWORD):
                reply = await client.post("/v1/token", data={"username": user.email, "password": password})
                statuses.append(reply.status_code)
    assert statuses == [401] * FREE + [429]


async def test_what_was_typed_as_an_address_is_not_stored(api: Api) -> None:
    assert await guess(api, "a secret that was typed into the wrong field", 1) == [401]
    stored = await api.scalar("SELECT string_agg(one::text, ' ') FROM failed_attempts AS one")
    assert "secret" not in stored
    assert STRANGER not in stored


async def test_forgotten_failures_are_deleted(api: Api) -> None:
    for n in range(3):
        await guess(api, f"user-{n}@example.com", 1)
    await api.execute(
        "UPDATE failed_attempts SET updated_at = now() - interval '61 minutes'"
        " WHERE subject IN (SELECT subject FROM failed_attempts LIMIT 3)",
    )
    async with UnitOfWork(api.database.write) as uow:
        first = await FORGOTTEN_ATTEMPTS.find(uow, None, 2)
        rest = await FORGOTTEN_ATTEMPTS.find(uow, first[-1], 2)
        assert (len(first), len(rest)) == (2, 1)
        assert len(await FORGOTTEN_ATTEMPTS.end(uow, [*first, *rest])) == 3
        await uow.commit()
    assert await api.scalar("SELECT count(*) FROM failed_attempts") == 1


async def test_beyond_the_queue_a_sign_in_is_told_to_come_back_and_is_not_counted(api: Api, user: User) -> None:
    passwords: Passwords = api.app.state.waybill.passwords
    passwords._taken = passwords._most
    refused = await sign_in(api, user.email)
    assert_problem(refused, 503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    assert await api.scalar("SELECT count(*) FROM failed_attempts") == 0
    registered = {"email": "new@example.com", "full_name": "New", "password": PASSWORD}
    assert_problem(await api.post("/v1/users", key=None, json=registered), 503, "overloaded")
    passwords._taken = 0
    assert (await sign_in(api, user.email)).status_code == 200


async def test_attempts_wait_for_a_place_before_they_use_the_database(api: Api, user: User) -> None:
    """A flood of sign-ins would otherwise take the connections away from other requests."""
    passwords: Passwords = api.app.state.waybill.passwords
    passwords._most = 1
    hashing, finish = asyncio.Event(), asyncio.Event()

    async def hold(*_: object) -> bool:
        hashing.set()
        await finish.wait()
        return False

    with patch.object(passwords, "matches", hold):
        first = asyncio.create_task(sign_in(api, user.email))
        await hashing.wait()
        for _ in range(3):
            assert_problem(await sign_in(api, user.email), 503, "overloaded")
        confirmation = {"current_password": PASSWORD, "password": "a password of whales"}
        assert_problem(await api.patch("/v1/users/me", by=user, version=1, json=confirmation), 503, "overloaded")
        assert await api.scalar("SELECT sum(failures) FROM failed_attempts") == 2, "once by account, once by address"
        finish.set()
        assert (await first).status_code == 401
    assert (await sign_in(api, user.email)).status_code == 200


@pytest.mark.parametrize("locked", [False, True])
async def test_whoever_is_refused_waits_for_the_answer(api: Api, user: User, locked: bool) -> None:
    """Clients that send the next attempt as soon as they have an answer would otherwise keep the process busy."""
    passwords: Passwords = api.app.state.waybill.passwords
    if locked:
        await guess(api, user.email, FREE)
    else:
        passwords._most = 0
    passwords.refusal_delay = 3600.0
    refused = asyncio.create_task(sign_in(api, user.email))
    await asyncio.sleep(0.5)
    assert not refused.done()
    assert passwords._taken == 0, "whoever waits for a refusal keeps no place"
    refused.cancel()
