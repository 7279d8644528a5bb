"""The commit comes before the reply: one that fails answers 5xx and leaves nothing."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text

from services.credits.ledger.repository import LedgerRepository
from services.orders import service
from services.orders.schemas import OrderCreate, OrderPublic
from services.sql import Statement
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.api.client import Api, assert_problem, order_of
from tests.factories import CONFIRMED, make_operator

Hook = Callable[[UnitOfWork], Awaitable[None]]

DANGLING = text("""
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, order_id, expires_at)
    SELECT gen_random_uuid(), min(id), max(id), 1, 'order', 'pending', gen_random_uuid(), now() FROM accounts
""")
"""A hold for an order that does not exist: the foreign key is checked at the commit."""


@pytest.fixture
def before_commit(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hook], None]:
    """Run the test's action between the work and the commit of every unit of work."""

    def install(hook: Hook) -> None:
        commit = UnitOfWork.commit

        async def commit_after_hook(uow: UnitOfWork) -> None:
            await hook(uow)
            await commit(uow)

        monkeypatch.setattr(UnitOfWork, "commit", commit_after_hook)

    return install


@pytest.mark.usefixtures("alone")
async def test_a_constraint_that_fails_at_the_commit_answers_5xx_and_leaves_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = service.place

    async def place_and_hold_for_nothing(
        uow: UnitOfWork, buyer: User, wanted: OrderCreate, patience: service.Patience
    ) -> OrderPublic:
        placed = await place(uow, buyer, wanted, patience)
        await (await uow.session.connection()).execute(DANGLING)
        return placed

    buyer, _, product = await api.shop()
    before = await api.everything()
    with monkeypatch.context() as patch:
        patch.setattr(service, "place", place_and_hold_for_nothing)
        reply = await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))

    assert_problem(reply, 500, "internal_error")
    assert await api.everything() == before
    assert await api.scalar("SELECT count(*) FROM idempotency_keys") == 0
    again = await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))
    assert again.status_code == 201, "a 5xx is not stored under the key"


async def cut(uow: UnitOfWork, api: Api) -> None:
    """Cut the connection of this unit of work from another one."""
    pid = (await (await uow.session.connection()).execute(text("SELECT pg_backend_pid()"))).scalar_one()
    # With a timeout: it returns only once the connection is gone.
    assert await api.scalar("SELECT pg_terminate_backend(:pid, 5000)", pid=pid)


@pytest.mark.usefixtures("alone")
async def test_a_connection_cut_before_the_commit_answers_5xx_and_leaves_nothing(
    api: Api, before_commit: Callable[[Hook], None]
) -> None:
    buyer, _, product = await api.shop()
    before = await api.everything()
    cuts: list[bool] = []

    async def cut_once(uow: UnitOfWork) -> None:
        if not cuts:
            cuts.append(True)
            await cut(uow, api)

    before_commit(cut_once)
    reply = await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))

    assert_problem(reply, 503, "unavailable")
    assert reply.headers["retry-after"] == "1"
    assert cuts
    assert await api.everything() == before
    assert await api.scalar("SELECT count(*) FROM idempotency_keys") == 0
    again = await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))
    assert again.status_code == 201, "the pool gives out a working connection afterwards"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/users", {"email": "new@example.com", "full_name": "New", "password": "long enough"}),
        ("PATCH", "/v1/users/me", {"full_name": "Other"}),
        ("DELETE", "/v1/users/me", CONFIRMED),
        ("POST", "/v1/categories", {"name": "Lamps"}),
    ],
)
async def test_no_route_answers_before_its_commit(
    api: Api, before_commit: Callable[[Hook], None], method: str, path: str, body: Any
) -> None:
    operator, _ = await make_operator(api.database), await make_operator(api.database)
    before = await api.everything()

    async def cut_always(uow: UnitOfWork) -> None:
        await cut(uow, api)

    before_commit(cut_always)
    reply = await api.request(method, path, by=operator, version=1, json=body)

    assert_problem(reply, 503, "unavailable")
    assert await api.everything() == before


@pytest.mark.usefixtures("alone")
async def test_after_a_connection_is_cut_during_the_work_the_order_is_placed_once(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop()
    place = service.place
    tries: list[bool] = []

    async def place_and_cut_once(
        uow: UnitOfWork, who: User, wanted: OrderCreate, patience: service.Patience
    ) -> OrderPublic:
        tries.append(True)
        if len(tries) == 1:
            await cut(uow, api)
        return await place(uow, who, wanted, patience)

    monkeypatch.setattr(service, "place", place_and_cut_once)
    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, 1)))

    assert reply.status_code == 201
    assert len(tries) == 2
    assert await api.scalar("SELECT count(*) FROM orders") == 1
    assert await api.scalar("SELECT count(*) FROM outbox") == 1


@pytest.mark.usefixtures("alone")
async def test_after_a_connection_is_cut_inside_a_savepoint_the_order_is_placed_once(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop()
    hold = LedgerRepository.hold
    tries: list[bool] = []

    async def hold_and_cut_once(ledger: LedgerRepository, *arguments: Any) -> None:
        await hold(ledger, *arguments)
        tries.append(True)
        if len(tries) == 1:
            (row,) = await ledger.sql.fetch(Statement("SELECT pg_backend_pid() AS pid"))
            assert await api.scalar("SELECT pg_terminate_backend(:pid, 5000)", pid=row["pid"])
            await ledger.sql.fetch(Statement("SELECT 1"))

    monkeypatch.setattr(LedgerRepository, "hold", hold_and_cut_once)
    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, 1)))

    assert reply.status_code == 201, reply.text
    assert len(tries) == 2
    assert await api.scalar("SELECT count(*) FROM orders") == 1


async def test_connections_that_died_in_the_pool_fail_no_request(api: Api) -> None:
    buyer, _, product = await api.shop()
    await api.place(buyer, (product, 1))
    others = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = :name"
    assert await api.scalar(f"{others} AND datname = current_database()", name="waybill-api") >= 1

    assert (await api.get("/v1/orders", by=buyer)).status_code == 200
    await api.place(buyer, (product, 1))


async def test_the_work_is_committed_before_the_reply_begins(api: Api) -> None:
    buyer, _, product = await api.shop()
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def look_first(message: Any) -> None:
            if message["type"] == "http.response.start":
                seen.append(await api.scalar("SELECT count(*) FROM orders"))
                seen.append(await api.scalar("SELECT count(*) FROM idempotency_keys"))
            await send(message)

        await api.app(scope, receive, look_first)

    api.client._transport.app = app  # type: ignore[attr-defined]
    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, 1)))

    assert reply.status_code == 201
    assert seen == [1, 1]


async def test_an_unexpected_error_answers_500_and_leaves_nothing(
    api: Api, before_commit: Callable[[Hook], None]
) -> None:
    buyer, _, product = await api.shop()
    before = await api.everything()

    async def fail(_: UnitOfWork) -> None:
        raise ZeroDivisionError("secret of the house")

    before_commit(fail)
    reply = await api.post("/v1/orders", by=buyer, key="k", json=order_of((product, 1)))

    assert_problem(reply, 500, "internal_error")
    assert "secret" not in reply.text
    assert await api.everything() == before
    assert await api.scalar("SELECT count(*) FROM idempotency_keys") == 0


@pytest.mark.usefixtures("alone")
async def test_a_deadlock_victim_is_retried_and_takes_effect_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    buyer, _, product = await api.shop()
    place = service.place
    tries = []

    async def place_at_the_third_try(
        uow: UnitOfWork, who: User, wanted: OrderCreate, patience: service.Patience
    ) -> OrderPublic:
        placed = await place(uow, who, wanted, patience)
        tries.append(placed.id)
        if len(tries) < 3:
            raise_deadlock = "DO $$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END $$"
            await (await uow.session.connection()).execute(text(raise_deadlock))
        return placed

    monkeypatch.setattr(service, "place", place_at_the_third_try)
    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, 1)))

    assert reply.status_code == 201
    assert len(tries) == 3
    assert await api.scalar("SELECT count(*) FROM orders") == 1
    assert await api.scalar("SELECT count(*) FROM outbox") == 1
    assert reply.json()["id"] == str(tries[-1])


@pytest.mark.usefixtures("alone")
async def test_endless_deadlocks_end_in_a_5xx_after_a_bounded_number_of_tries(
    api: Api, before_commit: Callable[[Hook], None]
) -> None:
    buyer, _, product = await api.shop()
    before = await api.everything()
    tries: list[bool] = []

    async def always(uow: UnitOfWork) -> None:
        tries.append(True)
        raise_failure = "DO $$ BEGIN RAISE EXCEPTION 'could not serialize' USING ERRCODE = '40001'; END $$"
        await (await uow.session.connection()).execute(text(raise_failure))

    before_commit(always)
    reply = await api.post("/v1/orders", by=buyer, json=order_of((product, 1)))

    assert reply.status_code >= 500
    assert_problem(reply, reply.status_code, reply.json()["code"])
    assert len(tries) == api.settings.transaction_attempts
    assert await api.everything() == before


async def test_a_request_has_one_unit_of_work_which_is_committed_once_if_it_writes_and_never_if_it_reads(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, _, product = await api.shop()
    opened: list[UnitOfWork] = []
    committed: list[UnitOfWork] = []
    closed: list[UnitOfWork] = []
    enter, commit, leave = UnitOfWork.__aenter__, UnitOfWork.commit, UnitOfWork.__aexit__

    async def note_opened(uow: UnitOfWork) -> UnitOfWork:
        opened.append(uow)
        return await enter(uow)

    async def note_committed(uow: UnitOfWork) -> None:
        committed.append(uow)
        await commit(uow)

    async def note_closed(uow: UnitOfWork, *error: Any) -> None:
        await leave(uow, *error)
        closed.append(uow)

    monkeypatch.setattr(UnitOfWork, "__aenter__", note_opened)
    monkeypatch.setattr(UnitOfWork, "commit", note_committed)
    monkeypatch.setattr(UnitOfWork, "__aexit__", note_closed)

    # The caller, the key and the order are read and written in the same one.
    assert (await api.post("/v1/orders", by=buyer, json=order_of((product, 1)))).status_code == 201
    assert opened == committed == closed
    assert len(opened) == 1
    assert (await api.get("/v1/orders", by=buyer)).status_code == 200
    assert (len(opened), len(committed)) == (2, 1)
    assert opened == closed
