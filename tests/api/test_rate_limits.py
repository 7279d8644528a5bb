"""Limits on the requests of each caller, by class of route."""

import asyncio
from time import monotonic
from typing import Any

import httpx2
import pytest

from services.api import rate_counts, rate_limits, rate_metrics, transaction
from services.api.rate_classes import RateClass
from services.settings import Settings
from services.users.models import User
from tests.api.client import Api, assert_problem, order_of
from tests.api.programs import make_key, with_key
from tests.api.test_throttle import at
from tests.conftest import BOTH_PATHS
from tests.factories import make_user

FEW = 3
SELF = "/v1/users/me"
LIST = "/v1/orders"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    few = {f"rate_limit_{kind}": FEW for kind in (RateClass.read, RateClass.write, RateClass.sign_in)}
    return settings.model_copy(update=few)


@pytest.fixture(autouse=True)
def _one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count does not begin again during a test, and a busy machine does not look like a Redis that hangs."""
    monkeypatch.setattr(rate_counts, "WINDOW", 100_000)
    monkeypatch.setattr(rate_limits, "WINDOW", 100_000)
    monkeypatch.setattr(rate_counts, "PATIENCE", 20.0)


@pytest.fixture
async def user(api: Api) -> User:
    return await make_user(api.database)


async def statuses(api: Api, path: str = SELF, times: int = FEW + 1, **more: Any) -> list[int]:
    return [(await api.get(path, **more)).status_code for _ in range(times)]


async def test_a_request_beyond_the_limit_gets_429_and_says_when_to_come_back(api: Api, user: User) -> None:
    left = []
    for _ in range(FEW):
        reply = await api.get(SELF, by=user)
        assert reply.status_code == 200
        assert reply.headers["ratelimit-policy"] == '"read";q=3;w=100000'
        name, rest, resets = reply.headers["ratelimit"].split(";")
        left.append(rest)
        assert (name, resets[:2]) == ('"read"', "t=")
        assert "retry-after" not in reply.headers
    assert left == ["r=2", "r=1", "r=0"]
    refused = await api.get(SELF, by=user)
    assert_problem(refused, 429, "rate_limited")
    assert refused.headers["ratelimit"] == f'"read";r=0;t={refused.headers["retry-after"]}'
    assert 1 <= int(refused.headers["retry-after"]) <= 100_000


async def test_the_database_is_not_asked_for_a_request_beyond_the_limit(
    api: Api, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    await statuses(api, by=user)

    def fail(_: object) -> None:
        raise AssertionError("a unit of work was opened")

    monkeypatch.setattr(transaction, "open_unit_of_work", fail)
    assert (await api.get(SELF, by=user)).status_code == 429
    assert (await api.post("/v1/orders", by=user, json={})).status_code != 429, "another class"


@BOTH_PATHS
async def test_orders_beyond_the_limit_are_not_placed_and_can_be_sent_again(api: Api, settings: Settings) -> None:
    buyer, _, product = await api.shop()
    for number in range(FEW):
        placed = await api.post("/v1/orders", by=buyer, key=f"k{number}", json=order_of((product, 1)))
        assert placed.status_code == 201
        assert placed.headers["ratelimit"].startswith(f'"write";r={FEW - 1 - number};')
    assert_problem(await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1))), 429, "rate_limited")
    assert await api.scalar("SELECT count(*) FROM orders") == FEW
    assert await api.scalar("SELECT count(*) FROM idempotency_keys") == FEW, "the key stays free"


async def test_classes_and_users_are_counted_apart(api: Api, user: User) -> None:
    assert await statuses(api, by=user) == [200] * FEW + [429]
    assert (await api.get("/v1/products")).headers["ratelimit"].startswith('"search"')
    assert (await api.delete("/v1/sessions/current", by=user)).status_code == 204
    assert await statuses(api, by=await make_user(api.database)) == [200] * FEW + [429]


async def test_the_keys_of_a_user_share_a_limit_with_the_users_tokens(api: Api, user: User) -> None:
    one, other = await make_key(api, user, "orders:read"), await make_key(api, user, "orders:read")
    # This process sees them for the first time, and counts that by address.
    assert [(await api.get(LIST, headers=with_key(key))).status_code for key in (one, other)] == [200, 200]
    assert await statuses(api, LIST, 1, by=user) == [200]
    assert await statuses(api, LIST, 1, headers=with_key(one)) == [200]
    assert await statuses(api, LIST, 2, headers=with_key(other)) == [200, 429]


async def test_bad_tokens_are_counted_by_address(api: Api, user: User) -> None:
    bad = {"Authorization": "Bearer wrong"}
    async with at(api, "203.0.113.7") as client:
        found = [(await client.get(SELF, headers=bad)).status_code for _ in range(FEW + 1)]
        assert found == [401] * FEW + [429]
        refused = await client.get("/v1/orders")
        assert_problem(refused, 429, "rate_limited")
        assert refused.headers["ratelimit"].startswith('"sign_in";r=0;')
    async with at(api, "203.0.113.8") as client:
        assert (await client.get(SELF, headers=bad)).status_code == 401, "another address"
    assert await statuses(api, by=user) == [200] * FEW + [429], "users with a token are not affected"


async def test_anonymous_callers_are_addresses_and_networks_of_version_6(api: Api) -> None:
    async def categories(address: str, times: int = 1) -> list[int]:
        async with at(api, address) as client:
            return [(await client.get("/v1/categories")).status_code for _ in range(times)]

    assert await categories("203.0.113.7", FEW + 1) == [200] * FEW + [429]
    assert await categories("::ffff:203.0.113.7") == [429], "the same on a socket of both versions"
    assert await categories("203.0.113.8") == [200]
    assert await categories("2001:db8:0:1::1", FEW) == [200] * FEW
    assert await categories("2001:db8:0:1:ffff::2") == [429], "the same network"
    assert await categories("2001:db8:0:2::1") == [200]
    # A client's own X-Forwarded-For changes nothing: the server has read it, if a trusted proxy sent it.
    async with at(api, "203.0.113.7") as client:
        forwarded = await client.get("/v1/categories", headers={"X-Forwarded-For": "198.51.100.1"})
        assert forwarded.status_code == 429


async def test_a_revoked_key_or_an_ended_session_does_not_use_up_its_owners_limit(
    api: Api, user: User, settings: Settings
) -> None:
    made = await make_key(api, user, "orders:read")
    assert (await api.get(LIST, headers=with_key(made))).status_code == 200, "now its owner is known"
    await api.execute("UPDATE api_keys SET revoked_at = now()")
    ended = {"Authorization": f"Bearer {await token_of_ended_session(api, user)}"}
    for number, headers in enumerate((with_key(made), ended)):
        async with at(api, f"203.0.113.{number}") as client:
            found = [(await client.get(LIST, headers=headers)).status_code for _ in range(FEW + 2)]
        # The first of them counts as its owner's: until then, nothing is known against it.
        assert found == [401] * (FEW + 1) + [429]
    assert await statuses(api, times=2, by=user) == [200, 429], "two of the three were used by the others"


async def token_of_ended_session(api: Api, user: User) -> str:
    token = str((await api.sign_in(user.email)).json()["access_token"])
    headers = {"Authorization": f"Bearer {token}"}
    assert (await api.delete("/v1/sessions/current", headers=headers)).status_code == 204
    return token


async def test_a_limit_of_zero_is_no_limit(api: Api, user: User, settings: Settings) -> None:
    quotas = api.app.state.waybill.rate_limits._quotas
    del quotas[RateClass.read]
    for _ in range(FEW + 2):
        reply = await api.get(SELF, by=user)
        assert reply.status_code == 200
        assert "ratelimit" not in reply.headers


async def test_probes_have_no_limit(api: Api) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/docs"):
        replies = [await api.get(path) for _ in range(FEW + 2)]
        assert {reply.status_code for reply in replies} <= {200, 503}
        assert all("ratelimit" not in reply.headers for reply in replies)


async def test_refused_requests_are_audited_and_counted_by_class(api: Api, user: User) -> None:
    def counted() -> float:
        return float(rate_metrics.refused_by[RateClass.read]._value.get())

    before = counted()
    await statuses(api, times=FEW + 5, by=user)
    assert counted() == before + 5
    text = (await api.get("/metrics")).text
    assert f'waybill_rate_limited_requests_total{{class="read"}} {counted()}' in text
    assert 'waybill_rate_limited_requests_total{class="batch"} ' in text
    assert "waybill_rate_limit_shared 1.0" in text
    deadline = monotonic() + 20
    while not await api.scalar("SELECT count(*) FROM audit_log WHERE action = 'request.limited'"):
        assert monotonic() < deadline
        await asyncio.sleep(0.1)
    # Written once a minute at most, with their number.
    audited = (
        "SELECT concat_ws(' ', actor, object, details->>'code', number <= 5) FROM audit_log WHERE action = :action"
    )
    assert await api.scalar(audited, action="request.limited") == f"user:{user.id} GET {SELF} rate_limited t"


async def test_every_problem_says_how_many_requests_are_left(api: Api, user: User) -> None:
    replies: list[httpx2.Response] = [
        await api.get("/v1/users/me?unknown=1", by=user),
        await api.get("/v1/orders/nothing", by=user),
        await api.post("/v1/orders", by=user, content=b"{", headers={"Content-Type": "application/json"}),
    ]
    assert [reply.status_code for reply in replies] == [400, 422, 400]
    assert [reply.headers["ratelimit"].split(";")[1] for reply in replies] == ["r=2", "r=1", "r=2"]
