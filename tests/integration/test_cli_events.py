"""`waybill events tail`: the last events, and then each new one, however late its transaction commits."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.outbox.log import service as log
from services.outbox.log.schemas import Bookmark
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from tests.processes import ROOT, environment_of, running, wait_until
from tests.roles import superuser_of

ORDER = "0193f0e4-0000-7000-8000-000000000000"


@pytest.fixture
def writer(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(superuser_of(settings)) as connection:
        yield connection


def write(writer: psycopg.Connection[Any], *numbers: int, kind: str = "order.placed", order: str = ORDER) -> None:
    for number in numbers:
        writer.execute(
            "INSERT INTO events (id, type, version, aggregate, payload) VALUES (gen_random_uuid(), %s, 1, %s, %s)",
            [kind, f"order/{order}", json.dumps({"number": number})],
        )


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["events", "tail", *arguments])
    assert result.exit_code == code, result.output
    return result


def numbers_of(printed: str) -> list[int]:
    return [json.loads(line)["payload"]["number"] for line in printed.splitlines()]


@pytest.mark.usefixtures("_settings_of_commands")
def test_the_last_events_are_printed_in_order(writer: psycopg.Connection[Any]) -> None:
    other = ORDER.replace("4", "5")
    write(writer, 1, 2, 3)
    write(writer, 4, kind="order.rejected", order=other)
    writer.commit()
    write(writer, 5)
    assert numbers_of(run("--json").stdout) == [1, 2, 3, 4]
    assert numbers_of(run("--json", "-n", "2").stdout) == [3, 4]
    assert numbers_of(run("--json", "--type", "order.rejected").stdout) == [4]
    assert numbers_of(run("--json", "--type", "order.rejected", "--type", "order.placed").stdout) == [1, 2, 3, 4]
    assert numbers_of(run("--json", "--order", ORDER, "-n", "2").stdout) == [2, 3]
    assert run("-n", "0").stdout == ""
    (line,) = run("-n", "1").stdout.splitlines()
    assert "order.rejected" in line
    assert '{"number":4}' in line


async def test_an_event_that_commits_late_is_read_late_and_once(
    settings: Settings, writer: psycopg.Connection[Any]
) -> None:
    from services.database import open_database

    async with open_database(settings, "cli") as database:

        async def following(here: Bookmark, limit: int = 100) -> tuple[list[int], Bookmark]:
            async with UnitOfWork(database.write) as uow:
                found, here = await log.follow(uow, here, limit, ["order.placed"])
            return [event.payload["number"] for event in found], here

        write(writer, 1)
        with psycopg.connect(superuser_of(settings)) as other:
            write(other, 2)
            other.commit()
            async with UnitOfWork(database.write) as uow:
                found, here = await log.tail(uow, 10)
            assert [event.payload["number"] for event in found] == [2]
            write(other, 3, 4)
            other.commit()
        first, here = await following(here, limit=1)
        second, here = await following(here)
        assert (first, second) == ([3], [4])
        writer.commit()
        assert (await following(here))[0] == [1]
        late, here = await following(here)
        assert (late, (await following(here))[0]) == ([1], [])


async def test_a_place_is_refused_after_a_change_of_the_primary(settings: Settings) -> None:
    from services.database import open_database
    from services.errors import Conflict

    async with open_database(settings, "cli") as database, UnitOfWork(database.write) as uow:
        _, here = await log.tail(uow, 0)
        with pytest.raises(Conflict, match="another server has become the primary"):
            await log.follow(uow, Bookmark(here.cursor, "0000FFFF"), 10)


def test_new_events_are_printed_as_they_are_committed(
    settings: Settings, tmp_path: Path, writer: psycopg.Connection[Any]
) -> None:
    write(writer, 1)
    writer.commit()
    log_file = tmp_path / "tail.log"
    tail = ["-m", "services.cli", "events", "tail", "-f", "--json", "--order", ORDER]
    with running(tail, settings, log_file) as followed:
        wait_until(lambda: numbers_of(followed.said()) == [1], "the first event")
        write(writer, 2)
        with psycopg.connect(superuser_of(settings)) as other:
            write(other, 3)
            write(other, 4, order=ORDER.replace("4", "5"))
            other.commit()
            wait_until(lambda: numbers_of(followed.said()) == [1, 3], "what is committed first")
            # It continues after its connection is lost.
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'waybill-cli%%'"
            )
        writer.commit()
        wait_until(lambda: [n for n in (1, 3, 2) if f'"number":{n}' in followed.said()] == [1, 3, 2], "the late one")
        events = [line for line in followed.said().splitlines() if line.startswith("{")]
        assert numbers_of("\n".join(events)) == [1, 3, 2]


def test_it_ends_when_nobody_reads_it_any_more(settings: Settings, writer: psycopg.Connection[Any]) -> None:
    write(writer, 1)
    writer.commit()
    with subprocess.Popen(
        [sys.executable, "-m", "services.cli", "events", "tail", "-f", "--json"],
        cwd=ROOT,
        env=environment_of(settings),
        stdout=subprocess.PIPE,
    ) as tail:
        assert tail.stdout is not None
        assert numbers_of(tail.stdout.readline().decode()) == [1]
        tail.stdout.close()
        write(writer, 2)
        writer.commit()
        assert tail.wait(30) == 0
