"""What is read on a streaming replica, what never is, and what a client sees of its own writes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text

from services.api import reads
from services.api.reads import LAG_HEADER, POSITION_HEADER, Outcome
from services.database import Database
from services.replica import Position, Positions
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.api.client import Api, assert_problem, order_of
from tests.api.test_outbox_control import LETTERS
from tests.factories import CONFIRMED, make_operator, make_user
from tests.replicated import (
    Pair,
    outcomes,
    read_from_replica,
    running_api,
    until,
    until_state,
)

REPLICATED = {
    "/v1/categories",
    "/v1/products",
    "/v1/users/me/products",
    "/v1/users/{user_id}/products",
    "/v1/transfers",
    "/v1/holds",
    "/v1/orders",
    "/v1/orders/{order_id}/refunds",
    "/v1/accounts/me/statement",
    "/v1/accounts/{user_id}/statement",
    "/v1/users",
    "/v1/adjustments",
    "/v1/audit-log",
    "/v1/operations/books",
    "/v1/operations/orders-by-day",
    "/v1/operations/bulk-actions",
    "/v1/operations/dead-letters",
    "/v1/operations/dead-letter-groups",
    "/v1/operations/dead-letter-groups/{fingerprint}",
    "/v1/operations/waiting",
    "/v1/operations/deferred",
}
"""Lists, searches and operators' summaries."""


@pytest.fixture
def settings(replicated: Settings) -> Settings:
    return replicated


@pytest.fixture
async def api(settings: Settings, database: Database) -> AsyncIterator[Api]:
    async with running_api(settings, database) as running:
        await until_state(running, "ok")
        yield running


async def new_category(api: Api, operator: User, name: str) -> str:
    """Create a category; returns the position in the reply."""
    reply = await api.post("/v1/categories", by=operator, json={"name": name})
    assert reply.status_code == 201, reply.text
    return str(reply.headers[POSITION_HEADER])


async def names(api: Api, **headers: str) -> tuple[list[str], bool]:
    """The names of the listed categories, oldest first, and whether they were read on the replica."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    reply = await api.get("/v1/categories?sort=id", headers=sent)
    return [one["name"] for one in reply.json()["data"]], read_from_replica(reply)


async def test_lists_searches_and_summaries_are_read_on_the_replica(api: Api, pair: Pair) -> None:
    buyer, _, product = await api.shop()
    operator = await make_operator(api.database)
    order = await api.place(buyer, (product, 1))
    async with UnitOfWork(api.database.write) as uow:
        await (await uow.session.connection()).execute(text(LETTERS))
        await uow.commit()
    pair.catch_up()
    ids = {"order_id": order["id"], "user_id": buyer.id, "fingerprint": "abc"}
    for path in sorted(REPLICATED):
        by = buyer if path == "/v1/accounts/me/statement" else operator
        query = "?type=order.placed&reason=ready" if path == "/v1/operations/waiting" else ""
        reply = await api.get(path.format_map(ids) + query, by=by)
        assert read_from_replica(reply), path
        assert 0 < float(reply.headers[LAG_HEADER]) < 10
    assert read_from_replica(await api.get(f"/v1/products?q={product.name}"))
    assert outcomes(api) == {Outcome.replica: len(REPLICATED) + 1}


def test_these_routes_use_the_replica_and_none_that_writes(api: Api) -> None:
    documented = api.app.openapi()["paths"]
    taking = {
        (method, path)
        for path, operations in documented.items()
        for method, operation in operations.items()
        if POSITION_HEADER in {one["name"] for one in operation.get("parameters", [])}
    }
    assert taking == {("get", path) for path in REPLICATED}


async def test_what_decides_is_read_on_the_primary(api: Api, pair: Pair) -> None:
    buyer, seller, product = await api.shop()
    pair.catch_up()
    pair.standby.pause()
    # All of these follow from what only the primary has.
    newcomer = await make_operator(api.database)
    assert (await api.get("/v1/users/me", by=newcomer)).status_code == 200
    order = await api.place(buyer, (product, 2))
    wanted = order_of((product, 1))
    first, again = [await api.post("/v1/orders", by=buyer, key="same", json=wanted) for _ in range(2)]
    assert (first.json()["id"], again.headers["idempotency-replayed"]) == (again.json()["id"], "true")
    assert (await api.get(f"/v1/orders/{order['id']}", by=buyer)).json()["status"] == "pending"
    changed = await api.patch(f"/v1/products/{product.id}", by=seller, version=1, json={"price": "7.00"})
    assert changed.status_code == 200, changed.text
    version = changed.headers["etag"]
    assert (await api.get(f"/v1/products/{product.id}")).headers["etag"] == version != '"1"'
    assert (await api.get("/v1/accounts/me", by=buyer)).json()["held"] != "0.00"
    # The order is there for the check of who may see it; its refunds are listed from the replica.
    assert read_from_replica(await api.get(f"/v1/orders/{order['id']}/refunds", by=buyer))
    assert not read_from_replica(await api.get(f"/v1/products/{product.id}"))


async def test_a_client_sees_its_own_write_with_the_position_that_it_got(api: Api, pair: Pair) -> None:
    operator = await make_operator(api.database)
    await new_category(api, operator, "old")
    pair.catch_up()
    pair.standby.pause()
    position = await new_category(api, operator, "new")

    assert await names(api) == (["old"], True)
    assert await names(api, waybill_position=position) == (["old", "new"], False)
    assert outcomes(api)[Outcome.not_replayed] == 1

    pair.standby.resume()
    pair.catch_up()
    assert await names(api, waybill_position=position) == (["old", "new"], True)


async def test_a_read_waits_a_moment_for_the_replica(api: Api, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "PATIENCE", 30.0)
    operator = await make_operator(api.database)
    pair.catch_up()
    pair.standby.pause()
    position = await new_category(api, operator, "new")
    waiting = asyncio.create_task(names(api, waybill_position=position))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    pair.standby.resume()
    assert await waiting == (["new"], True)


async def test_every_write_that_succeeds_has_a_position_and_nothing_else_has(api: Api) -> None:
    buyer, _, product = await api.shop()
    wanted = order_of((product, 1))
    placed, replayed = [await api.post("/v1/orders", by=buyer, key="same", json=wanted) for _ in range(2)]
    renamed = await api.patch("/v1/users/me", by=buyer, version=1, json={"full_name": "Bo"})
    deleted = await api.delete("/v1/users/me", by=await make_user(api.database), json=CONFIRMED)
    refused = await api.post("/v1/orders", by=buyer, json=order_of((product, 10**6)), key=None)
    listed = await api.get("/v1/products")

    writes = [placed, replayed, renamed, deleted]
    assert [one.status_code for one in writes] == [201, 201, 200, 204]
    positions = [Position.parse(one.headers[POSITION_HEADER]) for one in writes]
    lsns = [one.lsn for one in positions if one is not None]
    assert len(lsns) == 4
    assert lsns == sorted(lsns)
    assert refused.status_code == 400
    assert POSITION_HEADER not in {**refused.headers, **listed.headers}


@pytest.mark.parametrize("changed", ["system", "timeline"])
async def test_a_position_of_another_cluster_or_timeline_is_read_on_the_primary(
    api: Api, pair: Pair, changed: str
) -> None:
    position = Position.parse(await new_category(api, await make_operator(api.database), "new"))
    assert position is not None
    pair.catch_up()
    assert await names(api, waybill_position=str(position)) == (["new"], True)
    foreign = Position(position.system + (changed == "system"), position.timeline + (changed == "timeline"), 1)
    assert await names(api, waybill_position=str(foreign)) == (["new"], False)


@pytest.mark.parametrize("with_replica", [True, False])
async def test_a_malformed_position_is_refused(settings: Settings, database: Database, with_replica: bool) -> None:
    url = settings.database_replica_url if with_replica else None
    async with running_api(settings.model_copy(update={"database_replica_url": url}), database) as api:
        for wrong in ("", "1", "1-1", "1-1-", "1-1-G", "1-1-1-1", "-1-1-1", "1-1-" + "F" * 17, "9" * 5000, "0/16B3748"):
            reply = await api.get("/v1/categories", headers={POSITION_HEADER: wrong})
            problem = assert_problem(reply, 422, "invalid_input", pointers=[f"header/{POSITION_HEADER}"])
            assert "must be the value of this header in an earlier reply" in problem["detail"]
        beyond = await api.get("/v1/categories", headers={POSITION_HEADER: f"{2**64}-4294967296-{'F' * 16}"})
        assert not read_from_replica(beyond)


async def test_a_position_far_ahead_is_read_on_the_primary_within_a_short_time(api: Api) -> None:
    position = Position.parse(await new_category(api, await make_operator(api.database), "new"))
    assert position is not None
    ahead = Position(position.system, position.timeline, 2**64 - 1)
    async with asyncio.timeout(5):
        assert await names(api, waybill_position=str(ahead)) == (["new"], False)


async def test_without_a_replica_there_are_no_positions_and_no_lags(settings: Settings, database: Database) -> None:
    async with running_api(settings.model_copy(update={"database_replica_url": None}), database) as api:
        reply = await api.post("/v1/categories", by=await make_operator(api.database), json={"name": "a"})
        assert reply.status_code == 201
        assert POSITION_HEADER not in reply.headers
        assert await names(api, waybill_position="1-1-1") == (["a"], False)
        assert (await api.get("/readyz")).json()["replica"] == "none"
        assert "waybill_replica" not in (await api.get("/metrics")).text


async def test_a_write_whose_position_is_not_known_is_seen_on_the_primary(
    api: Api, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = await make_operator(api.database)
    pair.catch_up()
    pair.standby.pause()

    async def fail(_: Positions) -> None:
        raise OSError("the primary is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Positions, "_ask", fail)
        position = await new_category(api, operator, "new")
    assert await names(api) == ([], True)
    assert await names(api, waybill_position=position) == (["new"], False)


async def test_asynchronous_commits_are_seen_with_their_position(api: Api, pair: Pair) -> None:
    name = api.settings.async_url().database
    async with api.database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    operator = await make_operator(api.database)
    async with running_api(api.settings, api.database) as later:
        await until_state(later, "ok")
        for number in range(20):
            position = await new_category(later, operator, f"p{number}")
            listed, _ = await names(later, waybill_position=position)
            assert listed[-1] == f"p{number}"


async def test_the_primarys_connection_is_free_while_the_replica_is_read(
    api: Api, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = await make_operator(api.database)
    pair.catch_up()
    open_, goes_on = asyncio.Event(), asyncio.Event()
    replicas = reads.Reads.open

    def slowly(self: reads.Reads, wanted: Position | None) -> Any:
        return _Slow(replicas(self, wanted), open_, goes_on)

    monkeypatch.setattr(reads.Reads, "open", slowly)
    reading = asyncio.create_task(api.get("/v1/users", by=operator))
    await asyncio.wait_for(open_.wait(), 10)
    assert api.app.state.waybill.database.engine.pool.checkedout() == 0
    goes_on.set()
    assert read_from_replica(await reading)


class _Slow:
    """A context that is entered only when the test says so."""

    def __init__(self, context: Any, open_: asyncio.Event, goes_on: asyncio.Event) -> None:
        self._context, self._open, self._goes_on = context, open_, goes_on

    async def __aenter__(self) -> Any:
        entered = await self._context.__aenter__()
        self._open.set()
        await self._goes_on.wait()
        return entered

    async def __aexit__(self, *raised: Any) -> Any:
        return await self._context.__aexit__(*raised)


async def test_the_lag_that_a_reply_states_is_the_age_of_what_it_lacks(api: Api, pair: Pair) -> None:
    pair.standby.pause()
    await new_category(api, await make_operator(api.database), "new")
    await asyncio.sleep(1.0)
    reply = await api.get("/v1/categories")
    assert reply.json()["data"] == []
    # What it lacks was written a second ago.
    assert float(reply.headers[LAG_HEADER]) >= 1.0

    pair.standby.resume()

    async def is_current() -> bool:
        return float((await api.get("/v1/categories")).headers[LAG_HEADER]) < 1.0

    await until(is_current, "a small lag")
