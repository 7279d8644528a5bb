"""Groups that meet locks, refusals of the database, unconfirmed commits and mistakes: each request is answered once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError

from services.api import groups
from services.api.turns import Intent
from services.connections import CommitUnknown
from services.database import Database
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.api.client import Api, assert_problem, order_of
from tests.api.grouped import Gate, eventually, together
from tests.factories import make_product, make_user


@pytest.mark.parametrize("path", ["/v1/orders", "/v1/transfers"])
async def test_a_locked_account_holds_up_only_its_own_request(
    api: Api, database: Database, gate: Gate, path: str
) -> None:
    buyer, seller, product = await api.shop()
    others = [await make_user(database, credits="100") for _ in range(3)]
    wanted = order_of((product, 1)) if path == "/v1/orders" else {"to_user_id": seller.id, "amount": "1.00"}
    async with database.engine.connect() as connection:
        await connection.execute(text(f"SELECT 1 FROM accounts WHERE user_id = {buyer.id} FOR UPDATE"))
        async with gate.holding(4):
            stuck = asyncio.create_task(api.post(path, by=buyer, json=wanted))
            free = [asyncio.create_task(api.post(path, by=other, json=wanted)) for other in others]
        async with asyncio.timeout(1.5):
            assert [(await task).status_code for task in free] == [201] * 3
        await eventually(lambda: gate.attempts == [4, 1, 1])
        await asyncio.sleep(0.1)
        assert not stuck.done(), "it waits for the lock, alone"
    assert (await stuck).status_code == 201
    assert gate.attempts == [4, 1, 1]
    await api.assert_books_balance()


async def test_a_lock_that_could_not_be_foreseen_holds_up_a_group_for_a_moment_only(
    api: Api, database: Database, gate: Gate
) -> None:
    buyer, seller, product = await api.shop()
    locked = await make_product(database, seller=seller)
    bodies = [order_of((one, 1)) for one in (product, product, locked, product)]
    async with database.engine.connect() as connection:
        await connection.execute(text(f"SELECT 1 FROM products WHERE id = {locked.id} FOR UPDATE"))
        async with gate.holding(4):
            tasks = []
            for number, body in enumerate(bodies, start=1):
                tasks.append(asyncio.create_task(api.post("/v1/orders", by=buyer, json=body)))
                await gate.until(number)
        stuck = tasks.pop(2)
        async with asyncio.timeout(1.5):
            assert [(await task).status_code for task in tasks] == [201] * 3
        assert not stuck.done(), "it waits for the lock, alone"
    assert (await stuck).status_code == 201
    assert gate.attempts == [4, 2, 2, 1, 1]


async def freeze(api: Api, user: User) -> None:
    """A rule that only the database knows: nothing about this user's account changes."""
    statement = f"ALTER TABLE accounts ADD CONSTRAINT frozen CHECK (user_id <> {user.id}) NOT VALID"
    async with api.database.engine.begin() as connection:
        await connection.execute(text(statement))


@pytest.mark.parametrize("place", [0, 5, 7])
async def test_a_request_that_the_database_refuses_costs_its_neighbours_a_few_attempts_and_no_more(
    api: Api, gate: Gate, place: int
) -> None:
    _, _, product = await api.shop()
    buyers = [await make_user(api.database, credits="100") for _ in range(8)]
    await freeze(api, buyers[place])
    replies = await together(gate, *[api.post("/v1/orders", by=by, json=order_of((product, 1))) for by in buyers])
    assert [reply.status_code for reply in replies] == [201] * 8
    statuses = [reply.json()["status"] for reply in replies]
    # As alone: the refused hold is undone in its savepoint, and the order awaits payment.
    assert statuses.pop(place) == "awaiting_payment"
    assert statuses == ["pending"] * 7
    assert sorted(gate.attempts, reverse=True) == [8, 4, 4, 2, 2, 1, 1]
    await api.assert_books_balance()


@pytest.mark.parametrize("path", ["/v1/orders", "/v1/transfers"])
async def test_a_request_that_the_error_of_the_database_names_costs_its_neighbours_one_attempt(
    api: Api, gate: Gate, path: str
) -> None:
    _, seller, product = await api.shop()
    buyers = [await make_user(api.database, credits="100") for _ in range(8)]
    async with api.database.engine.begin() as connection:
        account = f"(SELECT id FROM accounts WHERE user_id = {buyers[3].id})"
        account_id = (await connection.execute(text(f"SELECT {account}"))).scalar_one()
        rule = f"ALTER TABLE transfers ADD CONSTRAINT frozen CHECK (debit_account_id <> {account_id}) NOT VALID"
        await connection.execute(text(rule))
    body = order_of((product, 1)) if path == "/v1/orders" else {"to_user_id": seller.id, "amount": "1.00"}
    replies = await together(gate, *[api.post(path, by=by, json=body) for by in buyers])
    alone = replies.pop(3)
    assert [reply.status_code for reply in replies] == [201] * 7
    # As without a group: the refused transfer is undone in its savepoint.
    assert alone.status_code == (201 if path == "/v1/orders" else 422)
    assert gate.attempts == [8, 7]
    await api.assert_books_balance()


def lose_the_first_answer(monkeypatch: pytest.MonkeyPatch, instead: Callable[[UnitOfWork], Awaitable[None]]) -> None:
    """The first commit is not confirmed; what happens `instead` of it says whether it took effect."""
    commit = UnitOfWork.commit
    done: list[bool] = []

    async def unconfirmed(uow: UnitOfWork) -> None:
        if done:
            await commit(uow)
            return
        done.append(True)
        await instead(uow)
        error = InterfaceError("COMMIT", None, Exception())
        assert error.orig is not None
        error.orig.__cause__ = CommitUnknown("the connection was lost")
        raise error

    monkeypatch.setattr(UnitOfWork, "commit", unconfirmed)


async def test_after_an_unconfirmed_commit_each_request_is_looked_up_before_it_is_answered(
    api: Api, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop(credits="10.00", price="10.00")
    refused = order_of((product, 5), on_insufficient_credits="refuse")
    lose_the_first_answer(monkeypatch, UnitOfWork.commit)
    replies = await together(
        gate,
        api.post("/v1/orders", by=buyer, key="a", json=order_of((product, 1))),
        api.post("/v1/orders", by=buyer, key="b", json=refused),
    )
    assert [reply.status_code for reply in replies] == [201, 402]
    assert not any("idempotency-replayed" in reply.headers for reply in replies)
    again = await api.post("/v1/orders", by=buyer, key="a", json=order_of((product, 1)))
    assert again.content == replies[0].content
    assert await api.scalar("SELECT count(*) FROM orders") == 1


async def test_after_a_commit_that_is_found_to_have_failed_the_outcome_is_unknown_and_the_key_can_be_used(
    api: Api, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop()
    lose_the_first_answer(monkeypatch, UnitOfWork.rollback)
    body = order_of((product, 1))
    replies = await together(gate, *[api.post("/v1/orders", by=buyer, key=key, json=body) for key in "ab"])
    for reply in replies:
        assert_problem(reply, 503, "outcome_unknown")
        assert reply.headers["retry-after"] == "1"
    assert await api.scalar("SELECT count(*) FROM orders") == 0
    assert (await api.post("/v1/orders", by=buyer, key="a", json=body)).status_code == 201


async def test_an_unconfirmed_commit_is_looked_up_only_once_its_transaction_has_ended(
    api: Api, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop()
    commit, orphan = UnitOfWork.commit, asyncio.Queue[UnitOfWork]()

    async def left_open(uow: UnitOfWork) -> None:
        # The server does not know yet that its client is gone: the transaction is still there.
        await uow.flush()
        await orphan.put(uow)
        await asyncio.sleep(1)

    # What closes the unit of work must not end the transaction.
    rollback = UnitOfWork.rollback

    async def left_alone(uow: UnitOfWork) -> None:
        if not kept or uow is not kept[0]:
            await rollback(uow)

    kept: list[UnitOfWork] = []
    lose_the_first_answer(monkeypatch, left_open)
    monkeypatch.setattr(UnitOfWork, "rollback", left_alone)
    body = order_of((product, 1))
    request = asyncio.create_task(api.post("/v1/orders", by=buyer, key="k", json=body))
    kept.append(await orphan.get())
    await asyncio.sleep(1.5)
    assert not request.done(), "the outcome is open while the transaction is"
    orphaned = kept.pop()
    await commit(orphaned)
    await rollback(orphaned)
    assert (await request).status_code == 201
    assert await api.scalar("SELECT count(*) FROM orders") == 1


async def test_if_its_task_ends_the_process_says_so_and_handles_each_request_alone(
    api: Api, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    buyer, _, product = await api.shop()
    await api.place(buyer, (product, 1))
    gate.closed = True
    waiting = asyncio.create_task(api.post("/v1/orders", by=buyer, json=order_of((product, 1))))
    await gate.until(1)
    for committer in gate._committers:
        committer._running.task.cancel()
    assert (await waiting).status_code == 201
    assert [one.levelno for one in caplog.records if one.name == "services.api.groups"] == [logging.CRITICAL]
    await api.place(buyer, (product, 1))
    assert gate.attempts == [1]


async def test_an_error_that_nobody_foresaw_splits_the_group_and_every_request_is_answered(
    api: Api, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop()
    decide = groups._Committer._decide

    def fail_for_two(committer: groups._Committer, uow: UnitOfWork, intents: Sequence[Intent[Any]], *more: Any) -> Any:
        if any(one.key.key == "2" for one in intents):
            raise KeyError("a mistake")
        return decide(committer, uow, intents, *more)

    monkeypatch.setattr(groups._Committer, "_decide", fail_for_two)
    body = order_of((product, 1))
    replies = await together(gate, *[api.post("/v1/orders", by=buyer, key=str(n), json=body) for n in range(4)])
    assert [reply.status_code for reply in replies] == [201] * 4
    assert gate.attempts == [4, 2, 2, 1, 1]


@pytest.mark.parametrize(("patience", "status"), [(5.0, 201), (-1.0, 503)], ids=["at once", "after a long time"])
async def test_if_the_database_is_away_requests_go_alone_unless_finding_out_took_long(
    api: Api, gate: Gate, monkeypatch: pytest.MonkeyPatch, patience: float, status: int
) -> None:
    buyer, _, product = await api.shop()

    async def refused(*_: Any) -> Any:
        raise ConnectionRefusedError("no server")

    # Only groups read several repositories at once here.
    monkeypatch.setattr(UnitOfWork, "read", refused)
    monkeypatch.setattr(groups, "_PATIENCE", patience)
    body = order_of((product, 1))
    replies = await together(gate, *[api.post("/v1/orders", by=buyer, json=body) for _ in range(3)])
    assert [reply.status_code for reply in replies] == [status] * 3
    assert gate.attempts == [3], "no halves: it is not because of one of them"
    if status == 503:
        assert {reply.json()["code"] for reply in replies} == {"unavailable"}
