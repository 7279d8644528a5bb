"""A recount of the books may take longer than other requests, and has its own limits."""

from time import monotonic

import pytest

import services.database
from services.audit import queries
from services.settings import Settings
from services.sql import Statement
from tests.api.client import Api, assert_problem
from tests.concurrency.ticks import rows
from tests.factories import make_operator

BOOKS = "/v1/operations/books"
SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'waybill-api' AND datname = current_database()"


@pytest.fixture
def settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Other requests may take a second, and the client waits 0.2 s longer. All use one connection."""
    monkeypatch.setattr(services.database, "PROMPT", 0.2)
    return settings.model_copy(
        update={
            "database_statement_timeout": 1.0,
            "database_transaction_timeout": 1.3,
            "database_pool_size": 1,
            "database_max_overflow": 0,
        }
    )


async def slow_down(api: Api, table: str, seconds: float) -> None:
    """Make it take this long to read the table."""
    await rows(api.database, f"ALTER TABLE {table} RENAME TO slow_{table}")
    slow = f"SELECT slow_{table}.* FROM (SELECT pg_sleep({seconds})) AS _ LEFT JOIN slow_{table} ON true"
    await rows(api.database, f"CREATE VIEW {table} AS {slow}")


@pytest.fixture
async def slow(api: Api) -> Api:
    """A recount, which reads the stock twice, takes two seconds."""
    await slow_down(api, "inventory", 1)
    return api


async def test_a_recount_may_take_longer_than_what_comes_next_on_its_connection(slow: Api) -> None:
    operator = await make_operator(slow.database)
    assert (await slow.get("/v1/categories", by=operator)).status_code == 200
    before = await rows(slow.database, SESSIONS)
    started = monotonic()
    assert (await slow.get(BOOKS, by=operator)).status_code == 200
    assert monotonic() - started > 1.5
    await slow_down(slow, "categories", 3)
    assert_problem(await slow.get("/v1/categories", by=operator), 503, "busy")
    assert await rows(slow.database, SESSIONS) == before


async def test_a_recount_that_takes_too_long_is_answered_503_and_costs_no_connection(
    slow: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = Statement(queries.TAKE_TIME.text.replace("60s", "1500ms"))
    monkeypatch.setattr(queries, "TAKE_TIME", shorter)
    operator = await make_operator(slow.database)
    assert (await slow.get("/v1/categories", by=operator)).status_code == 200
    before = await rows(slow.database, SESSIONS)
    assert len(before) == 1
    reply = await slow.get(BOOKS, by=operator)
    assert_problem(reply, 503, "busy")
    assert reply.headers["retry-after"] == "1"
    assert await rows(slow.database, SESSIONS) == before


async def test_a_recount_that_is_not_answered_in_time_is_answered_503(
    slow: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries.BOOKS, "limit", 0.3)
    reply = await slow.get(BOOKS, by=await make_operator(slow.database))
    assert_problem(reply, 503, "unavailable")
    assert reply.headers["retry-after"] == "1"
