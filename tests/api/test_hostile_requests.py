"""Bad requests of every kind beside honest ones: each is refused in a few kilobytes, and the others are served."""

import asyncio

import pytest

from benchmarks.bad_bodies import Held, send
from benchmarks.bad_requests import BAD, Bad
from benchmarks.sessions import session_of
from services.api.problems import MOST_FAULTS
from tests.api.client import Api, order_of
from tests.factories import make_user

MOST_REPLIED = 8192
MOST_HELD = 0.5
"""Seconds of CPU time. That is far more than `python -m benchmarks.bad_bodies` shows, since the collector looks at the
objects of all tests here; reporting 110,000 unknown fields took longer."""


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_request_costs_little(api: Api, name: str) -> None:
    user = await make_user(api.database)
    token = api.tokens.make(session_of(user.id))
    # The first reply of a kind is slower here: what the tests compare it with has to be prepared.
    await send(api.client, BAD[name], token)
    with Held() as held:
        reply = await send(api.client, BAD[name], token)
    assert 400 <= reply.status_code < 500, reply.text[:500]
    assert reply.headers["content-type"] == "application/problem+json"
    assert len(reply.content) <= MOST_REPLIED
    assert len(reply.json()["errors"]) <= MOST_FAULTS
    assert held.longest < MOST_HELD


async def test_honest_requests_are_served_beside_bad_ones(api: Api) -> None:
    buyer, _, product = await api.shop()
    bad = await make_user(api.database)
    token = api.tokens.make(session_of(bad.id))
    before = await api.everything()

    async def be_bad(one: Bad) -> int:
        return (await send(api.client, one, token)).status_code

    async def place() -> int:
        return (await api.post("/v1/orders", by=buyer, json=order_of((product, 1)))).status_code

    statuses = await asyncio.gather(*(be_bad(one) for one in BAD.values()), *(place() for _ in range(16)))
    assert all(400 <= status < 500 for status in statuses[: len(BAD)]), statuses
    assert statuses[len(BAD) :] == [201] * 16
    left = await api.everything()
    assert left["orders"][0] == before["orders"][0] + 16
    await api.assert_books_balance()
