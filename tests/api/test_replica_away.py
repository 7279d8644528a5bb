"""A replica that is away, silent, behind, promoted or the wrong one costs no request, and is used again when fit."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlmodel.ext.asyncio.session import AsyncSession

import services.database
from services import replica
from services.api.reads import Outcome
from services.catalog.repository import CategoryRepository
from services.database import Database, open_database
from services.query import Rows
from services.settings import Settings
from tests.api.client import Api
from tests.api.test_metrics import scrape
from tests.conftest import Administrator
from tests.factories import make_category, make_operator
from tests.proxy import Proxy
from tests.replicated import (
    Pair,
    is_fit,
    outcomes,
    read_from_replica,
    ready_says,
    replica_of,
    running_api,
    said,
    until,
    until_state,
)
from tests.standby import standby_of

LISTED = "/v1/categories?sort=id"


@pytest.fixture
def settings(replicated: Settings) -> Settings:
    return replicated


@pytest.fixture
async def api(settings: Settings, database: Database) -> AsyncIterator[Api]:
    async with running_api(settings, database) as running:
        await until_state(running, "ok")
        yield running


async def run(session: AsyncSession, statement: str) -> Any:
    return (await (await session.connection()).execute(text(statement))).scalar_one()


def slow_on_replica(monkeypatch: pytest.MonkeyPatch, pause: Callable[[AsyncSession], Awaitable[None]]) -> asyncio.Event:
    """Make lists of categories pause on the replica, between two reads of the table; returns what tells when."""
    page, begun = CategoryRepository.list_page, asyncio.Event()

    async def slowly(self: CategoryRepository, *wanted: Any, **options: Any) -> Rows[Any]:
        if await run(self.session, "SELECT pg_is_in_recovery()"):
            await page(self, *wanted, **options)
            begun.set()
            await pause(self.session)
        return await page(self, *wanted, **options)

    monkeypatch.setattr(CategoryRepository, "list_page", slowly)
    return begun


async def names(api: Api) -> list[str]:
    reply = await api.get(LISTED)
    assert reply.status_code == 200, reply.text
    return [one["name"] for one in reply.json()["data"]]


class Client:
    """Lists without a pause, until the block ends."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.replies: list[tuple[int, float]] = []

    async def __aenter__(self) -> "Client":
        self._listing = [asyncio.create_task(self._list()) for _ in range(4)]
        self._ended = False
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await asyncio.gather(*self._listing)

    async def _list(self) -> None:
        while not self._ended:
            started = monotonic()
            reply = await self._api.get(LISTED)
            self.replies.append((reply.status_code, monotonic() - started))
            await asyncio.sleep(0.01)


async def test_a_replica_that_was_killed_costs_no_request_and_is_used_again(
    api: Api, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    await make_category(api.database, "Lamps")
    pair.catch_up()
    with caplog.at_level(logging.WARNING):
        async with Client(api) as client:
            await until(lambda: len(client.replies) > 8, "some lists")
            pair.standby.kill()
            await until_state(api, "unreachable")
            assert await ready_says(api) == (200, True, "unreachable")
            before = len(client.replies)
            await until(lambda: len(client.replies) > before + 20, "more lists")
            assert await names(api) == ["Lamps"]
            pair.standby.start()
            await until_state(api, "ok")
            assert await ready_says(api) == (200, True, "ok")
        assert read_from_replica(await api.get(LISTED))
    assert {status for status, _ in client.replies} == {200}
    assert len(said(caplog, "the read replica is not in use")) == 1
    assert len(said(caplog, "the read replica is in use again")) == 1


async def test_a_silent_replica_costs_a_few_requests_a_short_time(
    settings: Settings,
    database: Database,
    pair: Pair,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica, "PATIENCE", 1.0)
    monkeypatch.setattr(services.database, "PATIENCE", 1.0)
    assert settings.database_replica_url is not None
    await make_category(database, "Lamps")
    pair.catch_up()
    async with Proxy(settings.database_replica_url) as proxy:
        few = {"database_pool_size": 4, "database_max_overflow": 2}
        distant = settings.model_copy(update={"database_replica_url": proxy.url, **few})
        async with running_api(distant, database) as api:
            await until_state(api, "ok")
            begun = slow_on_replica(monkeypatch, lambda session: run(session, "SELECT pg_sleep(0.5)"))
            # More than there are connections.
            listing = asyncio.gather(*(api.get(LISTED) for _ in range(24)))
            await asyncio.wait_for(begun.wait(), 10)
            proxy.silent = True
            started, connections = monotonic(), proxy.accepted
            with caplog.at_level(logging.WARNING):
                replies = await listing
                # Without the looks it would be the statement's limit and five seconds.
                assert monotonic() - started < 7
                assert proxy.accepted - connections < 12, "those who waited for a connection do not try for themselves"
                assert {reply.status_code for reply in replies} == {200}
                assert all(reply.json()["data"] for reply in replies)
                assert replica_of(api).state == "unreachable"

                started = monotonic()
                for _ in range(20):
                    assert await names(api) == ["Lamps"]
                assert monotonic() - started < 10 * replica.PATIENCE, "it is not waited for again"
                assert await ready_says(api) == (200, True, "unreachable")
                assert len(said(caplog, "the read replica is not in use")) == 1
            assert 0 < outcomes(api)[Outcome.failed] <= 24

            proxy.silent = False
            await until_state(api, "ok")
            assert read_from_replica(await api.get(LISTED))


async def test_a_process_starts_although_its_replica_is_away(
    settings: Settings, database: Database, pair: Pair
) -> None:
    pair.standby.kill()
    async with running_api(settings, database) as api:
        assert await names(api) == []
        assert (await ready_says(api))[1:] == (True, "unreachable")
        pair.standby.start()
        await until_state(api, "ok")
        assert read_from_replica(await api.get(LISTED))


async def test_a_replica_that_is_too_far_behind_is_left_until_it_has_caught_up(
    settings: Settings, database: Database, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_api(settings.model_copy(update={"database_replica_max_lag": 1.0}), database) as api:
        await until_state(api, "ok")
        assert read_from_replica(await api.get(LISTED))
        well = await scrape(api)
        assert well["waybill_replica_used", ()] == 1
        assert 0 < well["waybill_replica_lag_seconds", ()] < 1

        with caplog.at_level(logging.WARNING):
            pair.standby.pause()
            await make_category(database, "Lamps")
            await until_state(api, "behind")
            assert await names(api) == ["Lamps"]
            assert await ready_says(api) == (200, True, "behind")
            ill = await scrape(api)
            assert ill["waybill_replica_used", ()] == 0
            assert ill["waybill_replica_lag_seconds", ()] > 1
            assert ill["waybill_replica_reads_total", (("outcome", "unfit"),)] == 1
            assert ill["waybill_replica_reads_total", (("outcome", "replica"),)] == 1
            assert ill["waybill_database_pool_connections", (("pool", "read"), ("state", "idle"))] == 1
            await asyncio.sleep(0.5)
            (line,) = said(caplog, "the read replica is not in use")
            assert "WAYBILL_DATABASE_REPLICA_MAX_LAG allows 1 s" in line

        pair.standby.resume()
        await until_state(api, "ok")
        reply = await api.get(LISTED)
        assert read_from_replica(reply)
        assert [one["name"] for one in reply.json()["data"]] == ["Lamps"]


async def test_a_replica_that_is_no_longer_watched_is_not_read(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "INTERVAL", 3600.0)
    async with running_api(settings.model_copy(update={"database_replica_max_lag": 3.0}), database) as api:
        await until(lambda: is_fit(replica_of(api)), "a fit replica")
        assert read_from_replica(await api.get(LISTED))
        await asyncio.sleep(3.1)
        assert not read_from_replica(await api.get(LISTED))


async def test_an_idle_primary_does_not_make_its_replica_look_late(api: Api) -> None:
    await asyncio.sleep(1.5)
    assert replica_of(api).lag < 1.0
    assert read_from_replica(await api.get(LISTED))


async def test_a_replica_that_was_promoted_is_left_and_its_own_data_never_shown(
    settings: Settings, database: Database, pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = make_url(settings.database_url).database or ""
    with standby_of(pair.primary, tmp_path / "other") as other:
        promoting = settings.model_copy(update={"database_replica_url": other.url(name)})
        async with running_api(promoting, database) as api:
            await until_state(api, "ok")
            with caplog.at_level(logging.WARNING):
                await asyncio.to_thread(other.promote)
                await until_state(api, "primary")
            with psycopg.connect(other.url(name)) as promoted:
                promoted.execute("INSERT INTO categories (name) VALUES ('Only there')")
            await make_category(database, "Only here")
            assert await names(api) == ["Only here"]
            assert await ready_says(api) == (200, True, "primary")
            # On a busy machine it may have been left for a moment before, because it was behind.
            *_, line = said(caplog, "the read replica is not in use")
            assert "is not a standby" in line


async def test_a_position_is_never_taken_as_reached_by_a_promoted_replica(
    settings: Settings, database: Database, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks, only the check on the connection itself can notice."""
    monkeypatch.setattr(replica, "INTERVAL", 3600.0)
    name = make_url(settings.database_url).database or ""
    with standby_of(pair.primary, tmp_path / "other") as other:
        promoting = settings.model_copy(update={"database_replica_url": other.url(name)})
        async with running_api(promoting, database) as api:
            await until(lambda: is_fit(replica_of(api)), "a fit replica")
            await asyncio.to_thread(other.promote)
            with psycopg.connect(other.url(name)) as promoted:
                # Its log grows beyond the position that the primary will give.
                promoted.execute("SELECT pg_logical_emit_message(false, '', repeat('x', 10000000))")
            reply = await api.post("/v1/categories", by=await make_operator(database), json={"name": "Here"})
            listed = await api.get(LISTED, headers={"Waybill-Position": reply.headers["waybill-position"]})
            assert [one["name"] for one in listed.json()["data"]] == ["Here"]
            assert not read_from_replica(listed)


async def test_a_replica_of_another_timeline_is_left(
    settings: Settings, database: Database, pair: Pair, tmp_path: Path
) -> None:
    """As after a failover that the replica did not follow."""
    name = make_url(settings.database_url).database or ""
    with standby_of(pair.primary, tmp_path / "other") as other:
        await asyncio.to_thread(other.promote)
        moved = settings.model_copy(update={"database_url": other.url(name)})
        async with open_database(moved, "moved") as new, running_api(moved, new) as api:
            await until_state(api, "diverged")
            await make_category(new, "On the new timeline")
            await make_category(database, "On the old one")
            pair.catch_up()
            await asyncio.sleep(0.3)
            assert await names(api) == ["On the new timeline"]
            assert await ready_says(api) == (200, True, "diverged")


@pytest.mark.parametrize("wrong", ["primary", "other_cluster"])
async def test_an_address_that_is_not_that_of_a_replica_is_reported(
    settings: Settings, database: Database, administrator: Administrator, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_url(settings.database_url).set(
        host=administrator.info.host, port=administrator.info.port, database="postgres",
        password=administrator.info.password, username=administrator.info.user,
    )  # fmt: skip
    urls = {"primary": settings.database_url, "other_cluster": other.render_as_string(hide_password=False)}
    with caplog.at_level(logging.ERROR):
        async with running_api(settings.model_copy(update={"database_replica_url": urls[wrong]}), database) as api:
            await make_category(database, "Lamps")
            assert await names(api) == ["Lamps"]
            assert await ready_says(api) == (200, True, wrong)
    (line,) = said(caplog, "the read replica is not in use")
    assert "WAYBILL_DATABASE_REPLICA_URL" in line
    assert ("is not a standby" if wrong == "primary" else "points to another cluster") in line


async def test_a_replica_that_refuses_to_connect_is_left(settings: Settings, database: Database, pair: Pair) -> None:
    wrong = {
        "password": make_url(pair.standby.url()).set(password="wrong").render_as_string(hide_password=False),
        "database": pair.standby.url("nothing"),
    }
    for url in wrong.values():
        async with running_api(settings.model_copy(update={"database_replica_url": url}), database) as api:
            assert await ready_says(api) == (200, True, "unreachable")
            assert await names(api) == []
            # As if it had begun to refuse since the last look.
            found = replica_of(api)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(found), "is_fit", True)
                patch.setattr(found, "current_at", monotonic())
                patch.setattr(found._guard, "is_closed", False)
                assert await names(api) == []
            assert outcomes(api)[Outcome.failed] == 1


@pytest.mark.parametrize("between", [False, True], ids=["in a statement", "between two"])
async def test_a_read_that_is_in_the_way_of_replaying_is_repeated_on_the_primary(
    api: Api, pair: Pair, monkeypatch: pytest.MonkeyPatch, between: bool
) -> None:
    await make_category(api.database, "Lamps")
    pair.catch_up()

    async def pause(session: AsyncSession) -> None:
        await (asyncio.sleep(3) if between else run(session, "SELECT pg_sleep(20)"))

    begun = slow_on_replica(monkeypatch, pause)
    listing = asyncio.create_task(api.get(LISTED))
    await asyncio.wait_for(begun.wait(), 10)
    async with api.database.engine.begin() as connection:
        await connection.execute(text("LOCK TABLE categories IN ACCESS EXCLUSIVE MODE"))
        await connection.execute(text("ALTER TABLE categories ALTER COLUMN name SET STATISTICS 10"))
    reply = await listing
    assert [one["name"] for one in reply.json()["data"]] == ["Lamps"]
    assert not read_from_replica(reply)
    assert outcomes(api) == {Outcome.replica: 1, Outcome.failed: 1}


async def test_a_read_that_used_up_its_time_on_the_replica_is_not_repeated(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = 0

    async def slowly(self: CategoryRepository, *_wanted: Any, **_options: Any) -> Rows[Any]:
        nonlocal begun
        begun += 1
        await run(self.session, "SELECT pg_sleep(20)")
        raise AssertionError("unreachable")

    monkeypatch.setattr(CategoryRepository, "list_page", slowly)
    async with running_api(settings.model_copy(update={"database_statement_timeout": 0.5}), database) as api:
        await until_state(api, "ok")
        reply = await api.get(LISTED)
    assert (reply.status_code, reply.json()["code"], begun) == (503, "busy", 1)


async def test_a_table_that_the_replica_does_not_have_yet_is_read_on_the_primary(api: Api, pair: Pair) -> None:
    """As during a release, right after its migration."""
    pair.standby.pause()
    async with api.database.engine.begin() as connection:
        await connection.execute(text("ALTER TABLE categories RENAME COLUMN name TO title"))
    before = await api.get(LISTED)
    assert before.status_code == 200, "the replica has the old column"
    async with api.database.engine.begin() as connection:
        await connection.execute(text("ALTER TABLE categories RENAME COLUMN title TO name"))
        await connection.execute(text("ALTER TABLE categories RENAME TO others"))
    pair.standby.resume()
    pair.catch_up()
    pair.standby.pause()
    async with api.database.engine.begin() as connection:
        await connection.execute(text("ALTER TABLE others RENAME TO categories"))
    assert not read_from_replica(await api.get(LISTED))
    assert outcomes(api)[Outcome.failed] == 1
