"""The overview: its numbers, what needs attention, its JSON twin, and the stream of numbers."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest
from prometheus_client import generate_latest

from services.api import stopping
from services.console import live
from services.errors import Overloaded
from services.fields import now
from services.history import service as history
from services.history.schemas import Done
from services.operations.overview import service
from services.unit_of_work import UnitOfWork, background
from services.users.rights import Role
from tests.api.client import Api, assert_problem
from tests.api.console.browser import Page, browser_of
from tests.factories import make_operator, make_user

WORKER = (
    "INSERT INTO workers (id, host, pid, started_at, beat_at, progress_at, report) "
    "VALUES (gen_random_uuid(), 'host', 7, now(), now() - CAST(:silent AS interval), now(), '{}')"
)
AUDIT = (
    "INSERT INTO ledger_audits (started_at, seconds, rows_checked, differences, sample) "
    "VALUES (:at, 1.5, 1000, :differences, '[]')"
)


async def work(api: Api, done: Done) -> None:
    """A worker did this in the last complete slot."""
    async with background(lambda: UnitOfWork(api.database.write)) as uow:
        await history.write(uow, uuid4(), done)
    await api.execute("UPDATE history SET at = at - interval '10 seconds'")


async def healthy(api: Api) -> None:
    """A worker runs, and the books balanced an hour ago."""
    await api.execute(WORKER, silent=timedelta())
    await api.execute(AUDIT, at=now() - timedelta(hours=1), differences=0)


async def test_the_overview_tells_that_nothing_needs_attention(api: Api) -> None:
    await healthy(api)
    await work(api, Done(processed=50, batches=5, queued=50, queue_seconds=5.0, rung=5))
    page = await (await browser_of(api)).open("/console/overview")
    assert "Nothing needs attention." in page.text
    assert "Processed 5.0 events a second" in page.text
    assert "Until processed 0.1 s" in page.text
    assert "Batch 10.0 events on average" in page.text
    assert "Workers 1 woken by the doorbell" in page.text
    assert "Books balanced 0 differences in 1 000 rows" in page.text
    twin = (await api.get("/v1/operations/overview", by=await make_operator(api.database))).json()
    assert (twin["processed"], twin["workers"], twin["wakeups"], twin["attention"]) == (5.0, 1, "doorbell", [])
    assert (twin["books"]["balanced"], twin["books"]["differences"]) == (True, 0)


async def test_the_overview_tells_in_words_what_needs_attention(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    buyer, _, product = await api.shop()
    await api.place(buyer, (product, 1))
    monkeypatch.setattr(service, "SLOW", 0.0)
    await api.execute(WORKER, silent=timedelta(minutes=3))
    await api.execute(AUDIT, at=now() - timedelta(hours=5), differences=3)
    await work(api, Done(polled=3))
    page = await (await browser_of(api)).open("/console/overview")
    for words in (
        "Alarm: The worker 7 on host: no heartbeat for 180 s",
        "Alarm: The books do not balance: the last audit found 3 differences.",
        "Warning: The last audit began 5 hours ago.",
        "s: the workers do not keep up. Start more of them",
        "Warning: The doorbell does not ring",
        "Books not balanced",
    ):
        assert words in page.text
    await api.execute("DELETE FROM workers")
    operator = await make_operator(api.database)
    twin = (await api.get("/v1/operations/overview", by=operator)).json()
    told = [one["text"] for one in twin["attention"] if one["severity"] == "alarm"]
    assert "No worker is running, so no event is processed. Start one: waybill worker." in told


async def test_the_history_is_the_same_for_programs_and_for_charts(api: Api) -> None:
    await work(api, Done(processed=20))
    browser = await browser_of(api, Role.auditor)
    shown = (await browser.get("/console/overview/history?period=5m")).json()
    twin = (await api.get("/v1/operations/history?period=5m", by=await make_operator(api.database))).json()
    assert shown.keys() == twin.keys()
    assert sum(rate or 0 for rate in shown["processed"]) == 2.0
    assert (await browser.get("/console/overview/history?period=2y")).status_code == 422
    page = await browser.open("/console/overview?period=24h")
    assert "/console/overview?period=1h" in page.links


async def test_the_numbers_of_everyone_are_not_for_customers(api: Api) -> None:
    customer = await make_user(api.database)
    for path in ("/v1/operations/overview", "/v1/operations/history"):
        assert_problem(await api.get(path, by=customer), 403, "forbidden")


async def test_a_stream_shows_new_numbers_until_the_server_stops(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "INTERVAL", 0.0)
    monkeypatch.setattr(live, "_KEPT", 0.0)
    shown: live.Live = api.app.state.live
    messages = shown.messages(lambda overview: b"" if overview is None else str(overview.workers).encode())
    assert await anext(messages) == b"0"
    assert shown.streams == 1
    pool = api.app.state.waybill.database.engine.pool
    assert pool.checkedout() == 0, "while it waits, others use its connection"
    await api.execute(WORKER, silent=timedelta())
    assert await anext(messages) == b"1"
    monkeypatch.setattr(live, "INTERVAL", 3600.0)
    waiting = asyncio.create_task(anext(messages, b"the end"))
    await asyncio.sleep(0)
    stopping.begin()
    async with asyncio.timeout(30):
        assert await waiting == b"the end"
    assert shown.streams == 0
    with pytest.raises(Overloaded):
        shown.check_room()


async def test_a_stream_is_html_and_ends_after_a_minute(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await browser_of(api)
    monkeypatch.setattr(live, "LASTS", 0.0)
    monkeypatch.setattr(live, "INTERVAL", 0.0)
    reply = await browser.get("/console/overview/live")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-store"
    times = generate_latest(api.app.state.waybill.request_times.registry).decode()
    assert 'route="/console/overview/live"' not in times, "it would look like a slow request"


async def test_the_number_of_streams_is_bounded(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await browser_of(api)
    monkeypatch.setattr(live, "MOST", 0)
    reply = await browser.get("/console/overview/live", headers={"HX-Request": "true"})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert reply.text.startswith('<p role="alert"'), "a part of a page, and not a whole one"


async def test_a_stream_goes_on_while_the_database_does_not_answer(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("services.operations.overview.service.overview", fail)
    found = []
    messages = api.app.state.live.messages(lambda overview: b"unknown" if overview is None else b"known")
    async for message in messages:
        found.append(message)
        break
    await messages.aclose()
    assert found == [b"unknown"]


async def test_all_who_look_wait_for_the_same_read_that_fails(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = await browser_of(api)
    begun = 0

    async def hang(_: object) -> None:
        nonlocal begun
        begun += 1
        await asyncio.Event().wait()

    monkeypatch.setattr("services.operations.overview.service.overview", hang)
    monkeypatch.setattr(live, "_PATIENCE", 0.5)
    looking = [asyncio.create_task(api.app.state.live.overview()) for _ in range(50)]
    await asyncio.sleep(0)
    for failed in await asyncio.gather(*looking, return_exceptions=True):
        assert isinstance(failed, Overloaded)
    assert begun == 1
    page = await browser.get("/console/overview")
    assert page.status_code == 503
    assert "The database did not answer in time" in Page(page.text).text


async def test_streams_need_a_session(api: Api) -> None:
    assert (await api.get("/console/overview/live")).status_code == 401
    assert (await api.get("/console/overview/history")).status_code == 401
