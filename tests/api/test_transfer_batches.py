"""Batches of transfers over HTTP: independent, linked, atomic; savepoints if the database refuses one."""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import httpx2
import pytest

from services.transaction import SAVEPOINT_BUDGET
from services.users.models import User
from tests.api.client import Api, assert_problem
from tests.api.test_transfers import close_account, refuse_notes_of_poison
from tests.factories import make_user, plain_sql


def item(to: User | int, amount: str = "1", **more: Any) -> dict[str, Any]:
    return {"to_user_id": to if isinstance(to, int) else to.id, "amount": amount, **more}


async def send(
    api: Api, sender: User, *items: dict[str, Any], mode: str = "independent", key: str = "fresh", **more: Any
) -> httpx2.Response:
    wanted = {"mode": mode, "transfers": list(items), **more}
    return await api.post("/v1/transfers/batch", by=sender, key=key, json=wanted)


def codes(reply: httpx2.Response) -> list[str]:
    """`posted` or the error's code, by item."""
    results = reply.json()["results"]
    for result in results:
        assert (result["status"] == "posted") == (result["error"] is None) == (result["transfer"] is not None)
    return [result["error"]["code"] if result["error"] else result["status"] for result in results]


def savepoints(ran: Sequence[str]) -> int:
    """How many were set; the one before may be released in the same trip."""
    return sum(bool(re.search("(^|; )SAVEPOINT ", sql)) for sql in ran)


async def test_each_transfer_of_an_independent_batch_succeeds_or_fails_alone(api: Api) -> None:
    sender, receiver, other = [await make_user(api.database, credits=amount) for amount in ("10", "0", "0")]
    closed = await make_user(api.database)
    await close_account(api, closed)

    reply = await send(
        api,
        sender,
        item(receiver, "6", note="first"),
        item(other, "5"),
        item(sender),
        item(closed),
        item(2**62),
        item(other, "4"),
        item(other, "0.01"),
    )

    assert reply.status_code == 200
    answer = reply.json()
    assert (answer["mode"], answer["dry_run"], answer["posted"], answer["failed"]) == ("independent", False, 2, 5)
    assert codes(reply) == [
        "posted",
        "insufficient_credits",
        "same_account",
        "unknown_recipient",
        "unknown_recipient",
        "posted",
        "insufficient_credits",
    ]
    pointers = [result["error"]["pointer"] for result in answer["results"] if result["error"]]
    assert pointers == [
        "#/transfers/1/amount",
        "#/transfers/2/to_user_id",
        "#/transfers/3/to_user_id",
        "#/transfers/4/to_user_id",
        "#/transfers/6/amount",
    ]
    first = answer["results"][0]["transfer"]
    assert (first["amount"], first["note"], first["state"]) == ("6.00", "first", "posted")
    assert [(await api.credits_of(user))[0] for user in (sender, receiver, other)] == [0, 6, 4]
    assert await api.scalar("SELECT count(*) FROM transfers WHERE kind = 'transfer'") == 2
    assert await api.scalar("SELECT count(*) FROM events WHERE payload ->> 'kind' = 'transfer'") == 2
    await api.assert_books_balance()


async def test_an_atomic_batch_takes_effect_as_a_whole(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    reply = await send(api, sender, *[item(receiver, "2.50")] * 4, mode="atomic")
    assert (reply.status_code, codes(reply)) == (200, ["posted"] * 4)
    assert (await api.credits_of(receiver))[0] == 10
    await api.assert_books_balance()


async def test_an_atomic_batch_that_fails_leaves_nothing_and_its_refusal_is_replayed(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    before = await api.everything()
    items = [item(receiver, "6"), item(receiver, "5"), item(receiver, "1")]

    first = await send(api, sender, *items, mode="atomic", key="k-1")

    assert (first.status_code, first.headers["content-type"]) == (402, "application/problem+json")
    problem = first.json()
    assert (problem["code"], problem["status"]) == ("insufficient_credits", 402)
    assert [fault["pointer"] for fault in problem["errors"]] == ["#/transfers/1/amount"]
    assert await api.everything() == before
    again = await send(api, sender, *items, mode="atomic", key="k-1")
    assert (again.status_code, again.content) == (402, first.content)
    assert again.headers["idempotency-replayed"] == "true"


async def test_linked_transfers_succeed_or_fail_together(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    reply = await send(
        api,
        sender,
        item(receiver, "4", linked=True),
        item(receiver, "7", linked=True),
        item(receiver, "1"),
        item(receiver, "6", linked=True),
        item(receiver, "4"),
        item(receiver, "0.01"),
    )
    assert codes(reply) == [
        "linked_failed",
        "insufficient_credits",
        "linked_failed",
        "posted",
        "posted",
        "insufficient_credits",
    ]
    assert (await api.credits_of(receiver))[0] == 10
    await api.assert_books_balance()


@pytest.mark.parametrize("mode", ["independent", "atomic"])
async def test_a_chain_that_the_end_of_the_batch_cuts_off_fails(api: Api, mode: str) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    before = await api.everything()
    reply = await send(api, sender, item(receiver, linked=True), item(receiver, linked=True), mode=mode)
    assert reply.status_code == (200 if mode == "independent" else 422)
    if mode == "independent":
        assert codes(reply) == ["linked_failed", "linked_chain_open"]
        assert reply.json()["results"][1]["error"]["pointer"] == "#/transfers/1/linked"
    else:
        assert_problem(reply, 422, "linked_chain_open", pointers=["#/transfers/1/linked"])
    assert await api.everything() == before


@pytest.mark.parametrize("mode", ["independent", "atomic"])
async def test_a_dry_run_of_a_batch_reports_the_same_and_writes_nothing(api: Api, mode: str) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    items = [item(receiver, "6"), item(receiver, "5"), item(receiver, "4")]
    before = await api.everything()

    dry = await send(api, sender, *items, mode=mode, dry_run=True, key="k")

    assert await api.everything() == before
    assert await api.scalar("SELECT count(*) FROM idempotency_keys") == 0
    wet = await send(api, sender, *items, mode=mode, key="k")
    assert "idempotency-replayed" not in wet.headers
    assert wet.status_code == dry.status_code
    if mode == "atomic":
        for reply in (dry, wet):
            assert_problem(reply, 402, "insufficient_credits", pointers=["#/transfers/1/amount"])
        return
    assert (dry.json()["dry_run"], wet.json()["dry_run"]) == (True, False)
    assert all(result["transfer"] is None or result["transfer"]["id"] is None for result in dry.json()["results"])
    assert codes(wet) == codes(dry)


@pytest.mark.parametrize(
    ("wanted", "pointer"),
    [
        ({"mode": "independent", "transfers": []}, "#/transfers"),
        ({"mode": "independent", "transfers": [{"to_user_id": 1, "amount": "1"}] * 501}, "#/transfers"),
        ({"mode": "independent", "transfers": {"to_user_id": 1}}, "#/transfers"),
        ({"mode": "serial", "transfers": [{"to_user_id": 1, "amount": "1"}]}, "#/mode"),
        ({"transfers": [{"to_user_id": 1, "amount": "1"}]}, "#/mode"),
        ({"mode": "atomic", "transfers": [{"to_user_id": 1}]}, "#/transfers/0/amount"),
        ({"mode": "atomic", "transfers": [{"amount": "1"}]}, "#/transfers/0/to_user_id"),
        ({"mode": "atomic", "transfers": [{"to_user_id": "1", "amount": "1"}]}, "#/transfers/0/to_user_id"),
        ({"mode": "atomic", "transfers": [{"to_user_id": 1, "amount": "1", "linked": 1}]}, "#/transfers/0/linked"),
        ({"mode": "atomic", "transfers": [{"to_user_id": 1, "amount": "1", "note": "\0"}]}, "#/transfers/0/note"),
        ({"mode": "atomic", "transfers": [{"to_user_id": 1, "amount": "1", "from": 2}]}, "#/transfers/0/from"),
        ({"mode": "atomic", "transfers": [{"to_user_id": 1, "amount": "1"}], "dry_run": "yes"}, "#/dry_run"),
        ({"mode": "atomic", "transfers": [1]}, "#/transfers/0"),
    ],
)
async def test_a_malformed_batch_is_refused_whole_and_names_the_field(api: Api, wanted: Any, pointer: str) -> None:
    sender = await make_user(api.database, credits="10")
    before = await api.everything()
    reply = await api.post("/v1/transfers/batch", by=sender, json=wanted)
    assert_problem(reply, 422, "invalid_input", pointers=[pointer])
    assert await api.everything() == before


async def test_five_hundred_transfers_take_as_many_statements_as_one(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = await make_user(api.database, credits="1000")
    receivers = [await make_user(api.database) for _ in range(20)]
    numbers = []
    for many in (1, 500):
        with plain_sql(monkeypatch) as ran:
            reply = await send(api, sender, *[item(receivers[n % 20]) for n in range(many)])
        assert codes(reply) == ["posted"] * many
        numbers.append(len(ran))
    assert numbers[0] == numbers[1] <= 8
    assert (await api.credits_of(sender))[0] == 1000 - 501
    await api.assert_books_balance()


@pytest.mark.parametrize("poisoned", [[0], [499], [137, 138], [3, 480]], ids=str)
async def test_a_transfer_that_the_database_refuses_fails_alone_within_the_savepoint_budget(
    api: Api, monkeypatch: pytest.MonkeyPatch, poisoned: list[int]
) -> None:
    sender = await make_user(api.database, credits="500")
    receivers = [await make_user(api.database) for _ in range(5)]
    await refuse_notes_of_poison(api)
    items = [item(receivers[n % 5], note="poison" if n in poisoned else f"number {n}") for n in range(500)]

    with plain_sql(monkeypatch) as ran:
        reply = await send(api, sender, *items)

    assert reply.status_code == 200
    assert codes(reply) == ["transfer_refused" if n in poisoned else "posted" for n in range(500)]
    assert [result["error"]["pointer"] for result in reply.json()["results"] if result["error"]] == [
        f"#/transfers/{n}" for n in poisoned
    ]
    assert savepoints(ran) <= SAVEPOINT_BUDGET
    assert (await api.credits_of(sender))[0] == len(poisoned)
    assert await api.scalar("SELECT count(*) FROM transfers WHERE kind = 'transfer'") == 500 - len(poisoned)
    assert await api.scalar("SELECT count(*) FROM events WHERE payload ->> 'kind' = 'transfer'") == 500 - len(poisoned)
    await api.assert_books_balance()


async def test_a_refused_transfer_no_longer_takes_the_credits_of_later_ones(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="10"), await make_user(api.database)
    await refuse_notes_of_poison(api)
    reply = await send(api, sender, item(receiver, "8", note="poison"), item(receiver, "9"), item(receiver, "2"))
    assert codes(reply) == ["transfer_refused", "posted", "insufficient_credits"]
    assert (await api.credits_of(receiver))[0] == 9
    await api.assert_books_balance()


@pytest.mark.parametrize("mode", ["independent", "atomic"])
async def test_a_chain_that_the_database_refuses_names_the_transfer_it_fails_with(
    api: Api, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    sender, receiver = await make_user(api.database, credits="500"), await make_user(api.database)
    await refuse_notes_of_poison(api)
    items = [item(receiver, note="poison" if n in (301, 400) else "", linked=n < 499) for n in range(500)]
    before = await api.everything()

    with plain_sql(monkeypatch) as ran:
        reply = await send(api, sender, *items, mode=mode)

    if mode == "independent":
        assert codes(reply) == ["transfer_refused" if n == 301 else "linked_failed" for n in range(500)]
    else:
        assert_problem(reply, 422, "transfer_refused", pointers=["#/transfers/301"])
    assert savepoints(ran) <= SAVEPOINT_BUDGET
    assert await api.everything() == before


async def test_more_refusals_than_savepoints_refuse_the_batch_and_leave_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, receiver = await make_user(api.database, credits="500"), await make_user(api.database)
    await refuse_notes_of_poison(api)
    before = await api.everything()
    items = [item(receiver, note="poison" if n % 20 == 0 else "") for n in range(500)]

    with plain_sql(monkeypatch) as ran:
        reply = await send(api, sender, *items, key="k")

    assert_problem(reply, 422, "batch_refused")
    assert savepoints(ran) == SAVEPOINT_BUDGET
    assert await api.everything() == before
    again = await send(api, sender, *items, key="k")
    assert (again.content, again.headers["idempotency-replayed"]) == (reply.content, "true")


async def test_a_hundred_simultaneous_batches_with_one_key_take_effect_once(api: Api) -> None:
    sender, receiver = await make_user(api.database, credits="100"), await make_user(api.database)
    items = [item(receiver, "1"), item(receiver, "200"), item(receiver, "2")]

    replies = await asyncio.gather(*[send(api, sender, *items, key="k-1") for _ in range(100)])

    statuses = Counter(reply.status_code for reply in replies)
    assert set(statuses) <= {200, 409}, statuses
    assert sum("idempotency-replayed" not in reply.headers for reply in replies if reply.status_code == 200) == 1
    final = [reply if reply.status_code == 200 else await send(api, sender, *items, key="k-1") for reply in replies]
    assert {reply.content for reply in final} == {replies[[r.status_code for r in replies].index(200)].content}
    assert await api.scalar("SELECT count(*) FROM transfers WHERE kind = 'transfer'") == 2
    assert (await api.credits_of(sender))[0] == 97
    await api.assert_books_balance()


async def test_batches_that_cross_never_deadlock_and_keep_the_sum(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    users = [await make_user(api.database, credits="50") for _ in range(6)]

    async def cross(number: int) -> httpx2.Response:
        sender = users[number % 6]
        others = [user for user in users if user is not sender]
        return await send(api, sender, *[item(others[(number + n) % 5], "3.50") for n in range(8)])

    replies = await asyncio.gather(*[cross(number) for number in range(36)])

    assert {reply.status_code for reply in replies} == {200}
    assert not [record for record in caplog.records if "tried again" in record.message]
    balances = [(await api.credits_of(user))[0] for user in users]
    assert sum(balances) == Decimal(300)
    assert min(balances) >= 0
    await api.assert_books_balance()
