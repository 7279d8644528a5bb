"""Sessions: what a person stays signed in with, and how that ends."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from benchmarks.sessions import session_of
from services.unit_of_work import UnitOfWork
from services.users.models import Presented, User
from services.users.sessions.service import MOST_SESSIONS, expired_sessions
from tests.api.client import Api, assert_problem
from tests.factories import PASSWORD, make_operator, make_user, plain_sql


@pytest.fixture
async def user(api: Api) -> User:
    return await make_user(api.database)


async def sign_in(api: Api, user: User, agent: str = "a browser") -> dict[str, Any]:
    form = {"username": user.email, "password": PASSWORD}
    reply = await api.client.post("/v1/token", data=form, headers={"User-Agent": agent})
    assert reply.status_code == 200, reply.text
    assert reply.headers["cache-control"] == "no-store"
    token: dict[str, Any] = reply.json()
    return token


async def refresh(api: Api, refresh_token: str) -> httpx2.Response:
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    return await api.client.post("/v1/token", data=form, headers={"User-Agent": "a browser"})


async def refreshed(api: Api, refresh_token: str) -> dict[str, Any]:
    reply = await refresh(api, refresh_token)
    assert reply.status_code == 200, reply.text
    token: dict[str, Any] = reply.json()
    return token


def bearing(token: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {token['access_token']}"}


async def is_valid(api: Api, token: dict[str, Any]) -> bool:
    reply = await api.get("/v1/users/me", headers=bearing(token))
    if reply.status_code == 401:
        assert_problem(reply, 401, "unauthenticated")
        assert reply.headers["www-authenticate"] == "Bearer"
    return reply.status_code == 200


async def a_minute_passes(api: Api) -> None:
    """For refresh tokens: they were used a minute earlier."""
    await api.execute("UPDATE refresh_tokens SET used_at = used_at - interval '1 minute'")


async def test_a_refresh_token_extends_the_session_and_works_once(api: Api, user: User) -> None:
    first = await sign_in(api, user)
    second = await refreshed(api, first["refresh_token"])
    third = await refreshed(api, second["refresh_token"])
    assert len({token["refresh_token"] for token in (first, second, third)}) == 3
    assert len({token["access_token"] for token in (first, second, third)}) == 3
    assert all([await is_valid(api, token) for token in (first, second, third)])
    assert (second["expires_in"], api.settings.access_token_ttl) == (900, 900)
    (session,) = (await api.get("/v1/sessions", headers=bearing(third))).json()["data"][:1]
    assert session["current"]
    assert session["last_used_at"] > session["created_at"]


async def test_a_used_refresh_token_ends_its_session_and_no_other(api: Api, user: User) -> None:
    stolen, other = await sign_in(api, user), await sign_in(api, user)
    thief = await refreshed(api, stolen["refresh_token"])
    await a_minute_passes(api)
    refused = await refresh(api, stolen["refresh_token"])
    assert "already used" in assert_problem(refused, 401, "unauthenticated")["detail"]
    assert not await is_valid(api, thief), "the access token is refused at once"
    assert not await is_valid(api, stolen)
    assert_problem(await refresh(api, thief["refresh_token"]), 401, "unauthenticated")
    assert await is_valid(api, other)
    assert (await refresh(api, other["refresh_token"])).status_code == 200
    assert await api.scalar("SELECT string_agg(end_reason, ' ') FROM sessions") == "reused"


async def test_a_client_that_lost_the_reply_may_show_its_token_again_for_a_few_seconds(api: Api, user: User) -> None:
    first = await sign_in(api, user)
    lost = await refreshed(api, first["refresh_token"])
    retried = await refreshed(api, first["refresh_token"])
    again = await refreshed(api, first["refresh_token"])
    assert await is_valid(api, again)
    assert (await refresh(api, again["refresh_token"])).status_code == 200
    # The tokens in the lost replies are invalid, and a client that uses one has read them.
    refused = await refresh(api, lost["refresh_token"])
    assert "already used" in assert_problem(refused, 401, "unauthenticated")["detail"]
    assert not await is_valid(api, again)
    assert_problem(await refresh(api, retried["refresh_token"]), 401, "unauthenticated")


async def test_a_token_is_not_tolerated_again_once_its_successor_was_used(api: Api, user: User) -> None:
    first = await sign_in(api, user)
    second = await refreshed(api, first["refresh_token"])
    third = await refreshed(api, second["refresh_token"])
    assert "already used" in (await refresh(api, first["refresh_token"])).json()["detail"]
    assert not await is_valid(api, third)


async def test_of_simultaneous_refreshes_only_the_last_reply_counts(api: Api, user: User) -> None:
    first = await sign_in(api, user)
    replies = await asyncio.gather(*[refresh(api, first["refresh_token"]) for _ in range(6)])
    assert {reply.status_code for reply in replies} == {200}
    assert await api.scalar("SELECT count(*) FROM refresh_tokens WHERE used_at IS NULL") == 1
    assert await api.scalar("SELECT count(*) FROM refresh_tokens") == 7


async def test_only_the_sha256_of_a_refresh_token_is_stored(api: Api, user: User) -> None:
    token = (await sign_in(api, user))["refresh_token"]
    assert token.startswith("wbr_")
    assert len(token) == 47
    assert await api.scalar("SELECT hash FROM refresh_tokens") == hashlib.sha256(token.encode()).digest()
    tables = ("refresh_tokens", "sessions")
    stored = [await api.scalar(f"SELECT string_agg(one::text, ' ') FROM {table} AS one") for table in tables]
    assert token not in " ".join(stored)


@pytest.mark.parametrize("given", ["", "x", "wbr_", "\ud800", "wbr_" + "x" * 43, "x" * 100_000])
async def test_an_unknown_refresh_token_is_refused(api: Api, user: User, given: str) -> None:
    await sign_in(api, user)
    before = await api.everything()
    form = f"grant_type=refresh_token&refresh_token={given}".encode("utf-8", "surrogatepass")
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = await api.client.post("/v1/token", content=form, headers=headers)
    assert reply.status_code in (400, 401, 413, 422), reply.text
    assert_problem(reply, reply.status_code, reply.json()["code"])
    assert await api.everything() == before


@pytest.mark.parametrize(
    ("form", "missing"),
    [
        ({"grant_type": "refresh_token", "username": "a@example.com", "password": PASSWORD}, "refresh_token"),
        ({"grant_type": "password", "refresh_token": "x", "password": PASSWORD}, "username"),
        ({"username": "a@example.com"}, "password"),
        ({"grant_type": "client_credentials"}, "grant_type"),
    ],
)
async def test_each_grant_needs_its_own_fields(api: Api, form: dict[str, str], missing: str) -> None:
    assert_problem(await api.client.post("/v1/token", data=form), 422, "invalid_input", pointers=[f"#/{missing}"])


async def test_users_see_where_they_are_signed_in_and_nobody_elses_sessions(api: Api, user: User) -> None:
    await sign_in(api, await make_user(api.database))
    await sign_in(api, user, agent="an app\x7f " + "x" * 500)
    token = await sign_in(api, user)
    found = (await api.get("/v1/sessions", headers=bearing(token))).json()["data"]
    assert [(one["user_agent"], one["current"]) for one in found[:2]] == [
        ("a browser", True),
        (("an app\x7f " + "x" * 500)[:200], False),
    ]
    assert found[0].keys() == {
        "id", "created_at", "last_used_at", "expires_at", "address", "user_agent", "current"
    }  # fmt: skip
    assert found[0]["address"] == "127.0.0.1"
    # The third is the one in which tests send requests as this user.
    assert len(found) == 3


def current(_: str) -> str:
    return "/v1/sessions/current"


def by_id(session_id: str) -> str:
    return f"/v1/sessions/{session_id}"


@pytest.mark.parametrize("path", [current, by_id])
async def test_signing_out_ends_the_session_at_once(api: Api, user: User, path: Callable[[str], str]) -> None:
    other, token = await sign_in(api, user), await sign_in(api, user)
    session_id = (await api.get("/v1/sessions", headers=bearing(token))).json()["data"][0]["id"]
    assert (await api.delete(path(session_id), headers=bearing(token))).status_code == 204
    assert not await is_valid(api, token)
    assert_problem(await refresh(api, token["refresh_token"]), 401, "unauthenticated")
    assert await is_valid(api, other)
    assert_problem(await api.delete(by_id(session_id), headers=bearing(other)), 404, "not_found")


async def test_a_session_can_be_ended_from_another_one_but_not_by_someone_else(api: Api, user: User) -> None:
    lost, here = await sign_in(api, user), await sign_in(api, user)
    session_id = (await api.get("/v1/sessions", headers=bearing(lost))).json()["data"][1]["id"]
    stranger = await make_operator(api.database)
    refused = await api.delete(by_id(session_id), by=stranger)
    unknown = await api.delete(by_id("01890a5d-ac96-774b-bcce-b302099a8057"), by=stranger)
    for reply in (refused, unknown):
        assert_problem(reply, 404, "not_found")
    assert await is_valid(api, lost)
    assert (await api.delete(by_id(session_id), headers=bearing(here))).status_code == 204
    assert not await is_valid(api, lost)
    assert await is_valid(api, here)


async def test_signing_out_everywhere_ends_all_sessions_of_this_user(api: Api, user: User) -> None:
    stranger = await make_user(api.database)
    tokens = [await sign_in(api, user) for _ in range(3)]
    assert (await api.delete("/v1/sessions", headers=bearing(tokens[0]))).status_code == 204
    assert [await is_valid(api, token) for token in tokens] == [False] * 3
    assert (await api.get("/v1/users/me", by=stranger)).status_code == 200
    assert await is_valid(api, await sign_in(api, user))


async def test_a_user_who_was_deactivated_and_activated_again_has_to_sign_in(api: Api, user: User) -> None:
    operator, token = await make_operator(api.database), await sign_in(api, user)
    for version, active in ((1, False), (2, True)):
        path = f"/v1/users/{user.id}"
        reply = await api.patch(path, by=operator, version=version, json={"is_active": active})
        assert reply.status_code == 200
    assert not await is_valid(api, token)
    assert_problem(await refresh(api, token["refresh_token"]), 401, "unauthenticated")
    assert await is_valid(api, await sign_in(api, user))


async def test_a_token_with_the_session_of_someone_else_is_refused(api: Api, user: User) -> None:
    stranger, session = await make_user(api.database), session_of(user.id).session_id
    for user_id, status in ((stranger.id, 401), (user.id, 200)):
        token = api.tokens.make(Presented(user_id, session))
        assert (await api.get("/v1/users/me", headers={"Authorization": f"Bearer {token}"})).status_code == status


async def test_a_session_expires_unless_it_is_extended_and_after_its_longest_time_anyway(api: Api, user: User) -> None:
    token = await sign_in(api, user)
    lasts = "SELECT round(extract(epoch FROM expires_at - now())) FROM sessions ORDER BY created_at DESC LIMIT 1"
    assert abs(await api.scalar(lasts) - api.settings.session_idle_ttl) < 60
    await api.execute("UPDATE sessions SET expires_at = now() + interval '1 minute' WHERE address IS NOT NULL")
    token = await refreshed(api, token["refresh_token"])
    assert abs(await api.scalar(lasts) - api.settings.session_idle_ttl) < 60
    await api.execute("UPDATE sessions SET created_at = now() - interval '89 days' WHERE address IS NOT NULL")
    token = await refreshed(api, token["refresh_token"])
    assert 0 < await api.scalar(lasts.replace("created_at DESC", "created_at")) <= 86_400
    await api.execute("UPDATE sessions SET expires_at = now() WHERE address IS NOT NULL")
    assert not await is_valid(api, token)
    assert_problem(await refresh(api, token["refresh_token"]), 401, "unauthenticated")


async def test_a_session_lasts_no_longer_than_the_longest_time_even_if_nobody_prolongs_it(api: Api, user: User) -> None:
    state = api.app.state.waybill
    shorter = api.settings.model_copy(update={"session_idle_ttl": 7200, "session_max_ttl": 3600})
    api.app.state.waybill = replace(state, settings=shorter)
    token = await sign_in(api, user)
    lasts = "SELECT extract(epoch FROM expires_at - created_at) FROM sessions ORDER BY created_at DESC LIMIT 1"
    assert await api.scalar(lasts) == pytest.approx(3600, abs=60)
    await refreshed(api, token["refresh_token"])
    assert await api.scalar(lasts) == pytest.approx(3600, abs=60)


async def test_too_many_sessions_end_the_one_that_was_not_used_for_the_longest_time(api: Api, user: User) -> None:
    await api.delete("/v1/sessions", by=user)
    oldest, used = await sign_in(api, user), await sign_in(api, user)
    for _ in range(MOST_SESSIONS - 2):
        await sign_in(api, user)
    used = await refreshed(api, used["refresh_token"])
    used = await refreshed(api, used["refresh_token"])
    assert await is_valid(api, oldest)
    newest = await sign_in(api, user)
    assert not await is_valid(api, oldest)
    assert await is_valid(api, used)
    assert len((await api.get("/v1/sessions", headers=bearing(newest))).json()["data"]) == MOST_SESSIONS


async def test_sessions_are_deleted_with_their_tokens_when_they_have_been_over_for_the_retention(
    api: Api, user: User
) -> None:
    for _ in range(5):
        await sign_in(api, user)
    await api.execute(
        "UPDATE sessions SET expires_at = now() - n * interval '1 day' FROM (SELECT id AS one, row_number() OVER ()"
        " AS n FROM sessions WHERE address IS NOT NULL) AS numbered WHERE id = one",
    )
    sweep = expired_sessions(timedelta(days=3, hours=-1))
    async with UnitOfWork(api.database.write) as uow:
        first = await sweep.find(uow, None, 2)
        (last,) = await sweep.find(uow, first[-1], 2)
        assert await sweep.find(uow, last, 2) == []
        assert await sweep.end(uow, [*first, last]) != []
        await uow.commit()
    assert await api.scalar("SELECT count(*) FROM sessions WHERE address IS NOT NULL") == 2
    assert await api.scalar("SELECT count(*) FROM refresh_tokens") == 2


async def test_every_request_looks_up_user_and_session_in_one_statement(
    api: Api, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    with plain_sql(monkeypatch) as ran:
        assert (await api.get("/v1/sessions", by=user)).status_code == 200
    look_up, listed = ran
    assert "FROM sessions JOIN users" in look_up
    assert "LIMIT" in listed
