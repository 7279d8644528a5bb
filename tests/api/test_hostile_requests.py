"""Bad requests of every kind beside honest ones: each is refused in a few kilobytes, and the others are served."""

import asyncio
import sys
from types import FrameType

import pytest

from benchmarks.bad_bodies import request_of
from benchmarks.bad_requests import BAD, Bad
from benchmarks.sessions import session_of
from services.errors import MOST_FAULTS
from tests.api.client import Api, order_of
from tests.factories import make_user

MOST_REPLIED = 8192
MOST_CALLS = 20_000
"""Calls of functions that the event loop may make in one of its rounds. How long they take on a machine that does
nothing else is shown by `python -m benchmarks.bad_bodies`."""


class Calls:
    """Inside the block: the most calls, of Python's functions and of C's, that one round of the event loop made.

    Unlike time, that is the same on a busy machine, and in a process in which the collector has much to look at.
    """

    def __init__(self) -> None:
        self.most = 0
        self._now = 0
        self._ends = False

    def __enter__(self) -> "Calls":
        sys.setprofile(self._count)
        self._look()
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        self._ends = True
        self._note()

    def _count(self, _frame: FrameType, what: str, _argument: object) -> None:
        if what in {"call", "c_call"}:
            self._now += 1

    def _look(self) -> None:
        if not self._ends:
            self._note()
            # In the next round, after whatever is ready by then.
            asyncio.get_running_loop().call_soon(self._look)

    def _note(self) -> None:
        self.most, self._now = max(self.most, self._now), 0


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_request_costs_little(api: Api, name: str) -> None:
    user = await make_user(api.database)
    token = api.tokens.make(session_of(user.id))
    # The first reply of a kind is slower here: what the tests compare it with has to be prepared.
    await api.client.send(request_of(api.client, BAD[name], token))
    request = request_of(api.client, BAD[name], token)
    with Calls() as calls:
        reply = await api.client.send(request)
    assert 400 <= reply.status_code < 500, reply.text[:500]
    assert reply.headers["content-type"] == "application/problem+json"
    assert len(reply.content) <= MOST_REPLIED
    assert len(reply.json()["errors"]) <= MOST_FAULTS
    assert calls.most <= MOST_CALLS


async def test_honest_requests_are_served_beside_bad_ones(api: Api) -> None:
    buyer, _, product = await api.shop()
    bad = await make_user(api.database)
    token = api.tokens.make(session_of(bad.id))
    before = await api.everything()

    async def be_bad(one: Bad) -> int:
        return (await api.client.send(request_of(api.client, one, token))).status_code

    async def place() -> int:
        return (await api.post("/v1/orders", by=buyer, json=order_of((product, 1)))).status_code

    statuses = await asyncio.gather(*(be_bad(one) for one in BAD.values()), *(place() for _ in range(16)))
    assert all(400 <= status < 500 for status in statuses[: len(BAD)]), statuses
    assert statuses[len(BAD) :] == [201] * 16
    left = await api.everything()
    assert left["orders"][0] == before["orders"][0] + 16
    await api.assert_books_balance()
