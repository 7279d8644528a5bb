"""The statement: pages, filters, and CSV that stays cheap with a slow reader."""

import asyncio
import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
import uvicorn

from benchmarks.sessions import session_of
from services.credits.statement import service as export
from services.credits.statement.repository import StatementRepository
from services.credits.statement.service import HEADINGS
from services.local.embedded.ports import LOOPBACK, any_free_port
from services.users.models import User
from tests.api.client import Api, assert_problem
from tests.factories import make_operator, make_user

PATH = "/v1/accounts/me/statement"
NOTES = [
    "plain",
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    " =1",
    "\r\nx",
    'say "hi"',
    "a,b",
    "two\nlines",
    "über ✓",
    "'quoted",
]
SHOWN = {"=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r\nx"}
"""Notes that a spreadsheet would run as a formula, or split."""


async def with_notes(api: Api, *notes: str) -> User:
    """A user who was topped up with a hundred and sent one credit for each note."""
    user, other = await make_user(api.database, credits="100"), await make_user(api.database)
    for note in notes:
        reply = await api.post("/v1/transfers", by=user, json={"to_user_id": other.id, "amount": "1", "note": note})
        assert reply.status_code == 201, reply.text
    return user


def parse(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True))


async def test_the_statement_is_filtered_by_kind_and_time(api: Api) -> None:
    user = await with_notes(api, "a", "b")
    operator = await make_operator(api.database)
    await api.post("/v1/top-ups", by=operator, json={"user_id": user.id, "amount": "5"})

    async def versions(*filters: str, path: str = PATH) -> list[int]:
        reply = await api.get(path, by=user, params=[("filter", one) for one in filters])
        assert reply.status_code == 200, reply.text
        found = parse(reply.content) if path.endswith("csv") else reply.json()["data"]
        return [int(entry["version"]) for entry in found]

    assert await versions() == [4, 3, 2, 1]
    assert await versions("kind:eq:transfer") == [3, 2]
    assert await versions("kind:in:top_up,refund") == [4, 1]
    moments = [entry["created_at"] for entry in (await api.get(PATH, by=user)).json()["data"]]
    assert await versions(f"created_at:gt:{moments[2]}", f"created_at:lte:{moments[1]}") == [3]
    assert await versions(f"created_at:gt:{moments[2]}", "kind:ne:top_up", path=f"{PATH}.csv") == [3]
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert await versions(f"created_at:gte:{later}", path=f"{PATH}.csv") == []


@pytest.mark.parametrize("path", [PATH, f"{PATH}.csv"])
@pytest.mark.parametrize("wrong", ["kind:eq:gift", "kind:gt:order", "amount:eq:1", "created_at:gt:yesterday"])
async def test_a_filter_that_is_not_known_is_refused_by_pages_and_csv_alike(api: Api, path: str, wrong: str) -> None:
    user = await make_user(api.database)
    assert_problem(await api.get(path, by=user, params={"filter": wrong}), 400, "bad_query")
    assert_problem(await api.get(path), 401, "unauthenticated")


async def test_csv_has_the_rows_of_the_pages_oldest_first(api: Api) -> None:
    user = await with_notes(api, *NOTES)
    pages = (await api.get(f"{PATH}?sort=version", by=user)).json()["data"]

    reply = await api.get(f"{PATH}.csv", by=user)

    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert "attachment" in reply.headers["content-disposition"]
    lines = parse(reply.content)
    assert tuple(lines[0]) == HEADINGS
    for line, entry in zip(lines, pages, strict=True):
        assert line["created_at"] == entry["created_at"]
        assert (line["version"], line["amount"], line["balance"]) == (
            str(entry["version"]),
            entry["amount"],
            entry["balance"],
        )
        assert (line["kind"], line["transfer_id"]) == (entry["transfer"]["kind"], entry["transfer"]["id"])
        assert line["order_id"] == (entry["transfer"]["order_id"] or "")


async def test_csv_follows_rfc_4180_and_contains_no_formulas(api: Api) -> None:
    user = await with_notes(api, *NOTES)
    content = (await api.get(f"{PATH}.csv", by=user)).content
    assert content.endswith(b"\r\n")
    # A line break inside quotes belongs to the note; every other one is CRLF.
    outside = "".join(content.decode().split('"')[::2])
    assert outside.count("\n") == outside.count("\r\n") == len(NOTES) + 2
    assert b'"say ""hi"""' in content
    notes = [line["note"] for line in parse(content)][1:]
    assert notes == [f"'{note}" if note in SHOWN else note for note in NOTES]


async def test_an_empty_statement_has_only_a_heading(api: Api) -> None:
    user = await make_user(api.database)
    assert (await api.get(f"{PATH}.csv", by=user)).content == ",".join(HEADINGS).encode() + b"\r\n"


async def test_a_slow_reader_holds_no_connection_and_gets_the_statement_as_of_its_request(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_LINES_A_PIECE", 3)
    user, other = await make_user(api.database, credits="100"), await make_user(api.database)
    wanted = {"to_user_id": other.id, "amount": "1"}
    for _ in range(7):
        await api.post("/v1/transfers", by=user, json=wanted)
    reads, goes_on = asyncio.Event(), asyncio.Event()
    received: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def send_slowly(message: Any) -> None:
            if message["type"] == "http.response.body":
                received.append(message.get("body", b""))
                reads.set()
                await goes_on.wait()
            await send(message)

        await api.app(scope, receive, send_slowly if scope["path"].endswith(".csv") else send)

    api.client._transport.app = app  # type: ignore[attr-defined]
    export_ = asyncio.create_task(api.get(f"{PATH}.csv", by=user))
    await asyncio.wait_for(reads.wait(), 10)

    busy = """
        SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND application_name LIKE 'waybill-api%' AND (state <> 'idle' OR xact_start IS NOT NULL)
    """
    assert await api.scalar(busy) == 0
    pool = api.app.state.waybill.database.engine.pool
    assert pool.checkedout() == 0
    # What happens meanwhile is not in it.
    assert (await api.post("/v1/transfers", by=user, json=wanted)).status_code == 201
    goes_on.set()
    reply = await asyncio.wait_for(export_, 10)

    assert [line["version"] for line in parse(reply.content)] == [str(version) for version in range(1, 9)]
    assert len(received) >= 3, "it came in pieces"


async def test_an_export_that_fails_in_the_middle_does_not_look_complete(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_LINES_A_PIECE", 3)
    user = await with_notes(api, *["x"] * 7)
    lines = StatementRepository.lines
    reads: list[bool] = []

    async def fail_at_the_second(self: StatementRepository, *args: Any, **kwargs: Any) -> Any:
        reads.append(True)
        if len(reads) == 2:
            raise ConnectionResetError("the database is gone")
        return await lines(self, *args, **kwargs)

    monkeypatch.setattr(StatementRepository, "lines", fail_at_the_second)
    port = any_free_port()
    server = uvicorn.Server(uvicorn.Config(api.app, host=LOOPBACK, port=port, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    try:
        # Retried until it listens.
        transport = httpx2.AsyncHTTPTransport(retries=8)
        headers = {"Authorization": f"Bearer {api.tokens.make(session_of(user.id))}"}
        async with httpx2.AsyncClient(base_url=f"http://{LOOPBACK}:{port}", transport=transport) as client:
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.get(f"{PATH}.csv", headers=headers)
            assert (await client.get(f"{PATH}.csv", headers=headers)).status_code == 200
    finally:
        server.should_exit = True
        await serving
