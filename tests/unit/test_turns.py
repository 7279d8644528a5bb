"""The queue of requests that wait for a group: turns, room, and what must not be in one group."""

import asyncio
from typing import Any

from fastapi import Request

from benchmarks.sessions import session_of
from services.api.turns import Alone, Intent, Turns
from services.idempotency.repository import RequestKey
from services.outbox.events import Trace

REQUEST = Request({"type": "http", "method": "POST", "path": "/", "headers": []})


def turns(most_weight: int = 100) -> Turns[dict[str, Any]]:
    return Turns(lambda one: one.get("weight", 1), lambda one: one.get("name"), most_weight)


def intent(caller: int, key: str, **wanted: Any) -> Intent[dict[str, Any]]:
    return Intent(REQUEST, session_of(caller), RequestKey(caller, "POST", "/v1/orders", key, b""), wanted, Trace())


def keys(group: list[Intent[dict[str, Any]]]) -> list[str]:
    return [one.key.key for one in group]


async def test_callers_take_turns_however_much_one_of_them_sends() -> None:
    queue = turns()
    for number in range(10):
        queue.put(intent(1, f"flood-{number}"))
    queue.put(intent(2, "b"))
    queue.put(intent(3, "c"))
    assert keys(queue.take(4)) == ["flood-0", "flood-1", "b", "c"]
    queue.put(intent(2, "b2"))
    assert keys(queue.take(4)) == ["flood-2", "flood-3", "flood-4", "b2"]
    assert len(queue) == 5


async def test_a_group_is_in_the_order_of_arrival() -> None:
    queue = turns()
    for caller, key in ((1, "a"), (1, "b"), (2, "c"), (2, "d")):
        queue.put(intent(caller, key))
    assert keys(queue.take(4)) == ["a", "b", "c", "d"]
    assert queue.take(4) == []


async def test_the_same_key_or_name_twice_waits_for_the_next_group_with_what_follows_it() -> None:
    queue = turns()
    for caller, key, name in (
        (1, "a", None),
        (1, "a", None),
        (1, "b", None),
        (2, "a", "n"),
        (2, "c", "n"),
        (3, "d", "n"),
    ):
        queue.put(intent(caller, key, name=name))
    first = queue.take(4)
    assert [(one.key.caller_id, one.key.key) for one in first] == [(1, "a"), (2, "a"), (3, "d")]
    assert [(one.key.caller_id, one.key.key) for one in queue.take(4)] == [(1, "a"), (1, "b"), (2, "c")]


async def test_a_group_has_room_for_so_many_lines_and_for_one_request_of_any_size() -> None:
    queue = turns(most_weight=10)
    for caller, weight in ((1, 6), (2, 5), (3, 50)):
        queue.put(intent(caller, str(caller), weight=weight))
    assert [keys(queue.take(4)) for _ in range(3)] == [["1"], ["2"], ["3"]]


async def test_a_request_that_was_cancelled_is_left_out() -> None:
    queue = turns()
    gone, there = intent(1, "gone"), intent(1, "there")
    queue.put(gone)
    queue.put(there)
    gone.outcome.cancel()
    assert keys(queue.take(4)) == ["there"]
    assert len(queue) == 0


async def test_what_is_put_back_is_first_again_in_its_order() -> None:
    queue = turns()
    for caller, key in ((1, "a"), (1, "b"), (1, "c"), (2, "d")):
        queue.put(intent(caller, key))
    taken = queue.take(2)
    assert keys(taken) == ["a", "d"]
    queue.put_back(taken)
    assert keys(queue.take(2)) == ["a", "d"]
    assert keys(queue.take(2)) == ["b", "c"]


async def test_the_number_ahead_takes_turns_into_account() -> None:
    queue = turns()
    for number in range(100):
        queue.put(intent(1, str(number)))
    assert queue.ahead(2) == 1
    assert queue.ahead(1) == 100


async def test_an_outcome_is_settled_once() -> None:
    one = intent(1, "a")
    one.settle(Alone())
    one.settle(Alone())
    assert await asyncio.wait_for(one.outcome, 1) == Alone()
