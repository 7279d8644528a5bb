"""A statement, a lock or a transaction that takes too long ends: the client is told, and nothing is half done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text

from services.api import problems
from services.catalog import service
from services.catalog.models import Category
from services.catalog.schemas import CategoryCreate
from services.database import Limits
from services.logs import RateLimitedLogger
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.api.client import Api, assert_problem
from tests.factories import make_operator

LIMIT = 0.4
LONG = 30.0

Hang = Callable[[UnitOfWork], Awaitable[None]]


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """All limits are long, except that of the test."""
    limits = dict.fromkeys(("statement", "lock", "transaction", "idle_in_transaction"), LONG)
    limits[request.param] = LIMIT
    named = {f"database_{name}_timeout": seconds for name, seconds in limits.items()}
    # Each request is tried once: it would be tried again within the first seconds.
    return settings.model_copy(update={**named, "transaction_attempts": 1})


async def a_statement(uow: UnitOfWork) -> None:
    await (await uow.session.connection()).execute(text("SELECT pg_sleep(20)"))


async def a_lock(uow: UnitOfWork) -> None:
    await (await uow.session.connection()).execute(text("SELECT pg_advisory_xact_lock(7)"))


async def idleness(uow: UnitOfWork) -> None:
    await asyncio.sleep(3 * LIMIT)


@pytest.mark.parametrize(
    ("settings", "hang", "code"),
    [
        ("statement", a_statement, "busy"),
        ("lock", a_lock, "busy"),
        ("transaction", a_statement, "busy"),
        # The driver does not tell why a connection was closed while nobody waited for an answer.
        ("idle_in_transaction", idleness, "unavailable"),
        ("transaction", idleness, "unavailable"),
    ],
    indirect=["settings"],
)
async def test_a_request_that_takes_too_long_is_told_to_come_back_and_leaves_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hang: Hang, code: str
) -> None:
    monkeypatch.setattr(problems, "outage", RateLimitedLogger(problems.logger))
    operator = await make_operator(api.database)
    create = service.create_category

    async def create_and_hang(uow: UnitOfWork, wanted: CategoryCreate) -> Category:
        made = await create(uow, wanted)
        await hang(uow)
        return made

    before = await api.everything()
    async with api.database.engine.connect() as other:
        # So that it is in no transaction, which would be ended as well.
        await other.execution_options(isolation_level="AUTOCOMMIT")
        await other.execute(text("SELECT pg_advisory_lock(7)"))
        monkeypatch.setattr(service, "create_category", create_and_hang)
        reply = await asyncio.wait_for(api.post("/v1/categories", by=operator, key="k", json={"name": "Lamps"}), 15)
        problem = assert_problem(reply, 503, code)
        assert "nothing took effect" in problem["detail"]
        assert reply.headers["retry-after"] == "1"
        if code == "busy":
            assert "took too long" in problem["detail"]
            assert "timeout" in caplog.text
        assert await api.everything() == before
        await other.execute(text("SELECT pg_advisory_unlock_all()"))
    monkeypatch.setattr(service, "create_category", create)
    again = await api.post("/v1/categories", by=operator, key="k", json={"name": "Lamps"})
    assert again.status_code == 201, again.text


@pytest.mark.parametrize("settings", ["transaction"], indirect=True)
def test_a_request_is_not_idle_for_longer_than_its_transaction_may_last(settings: Settings) -> None:
    assert Limits.of_requests(settings).idle == LIMIT
    assert Limits.of_jobs().idle is None, (
        "a worker's batch has the whole of WAYBILL_DATABASE_IDLE_IN_TRANSACTION_TIMEOUT"
    )


async def shown(api: Api, *names: str) -> list[Any]:
    async with api.app.state.waybill.database.engine.connect() as connection:
        return [(await connection.execute(text(f"SHOW {name}"))).scalar_one() for name in names]


@pytest.mark.parametrize("settings", ["transaction"], indirect=True)
async def test_sessions_of_the_api_have_all_four_limits(api: Api) -> None:
    names = ("statement_timeout", "lock_timeout", "transaction_timeout", "idle_in_transaction_session_timeout")
    assert await shown(api, *names) == ["30s", "30s", "400ms", "400ms"]
