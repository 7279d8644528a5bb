"""Positions are added to a log in use: in order, in batches, interrupted and resumed, beside running writers."""

from itertools import count
from uuid import UUID

import psycopg
import pytest
from alembic import command

import migrations.batches
from migrations.config import alembic_config
from services.fields import new_id
from tests.migrations.schema import downgrade, revision_of, upgrade
from tests.migrations.watched import Interrupted, interrupt_at, upgrade_watched

BEFORE, AFTER = "0004", "0005"
EVENTS, BATCH = 20, 6


@pytest.fixture
def url(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database before the step, with events in its log that were not written in the order of their ids."""
    monkeypatch.setattr(migrations.batches, "BATCH_SIZE", BATCH)
    upgrade(empty_database_url, BEFORE)
    ids = [new_id() for _ in range(EVENTS)]
    with psycopg.connect(empty_database_url) as connection:
        for event_id in (*ids[::2], *ids[1::2]):
            write(connection, event_id)
    return empty_database_url


def write(connection: "psycopg.Connection[tuple[object, ...]]", event_id: UUID) -> None:
    """An event as the services wrote it before this migration."""
    connection.execute(
        "INSERT INTO events (id, type, version, aggregate, payload) VALUES (%s, 'a', 1, 'a/1', '{}')", [event_id]
    )


def positions(url: str) -> list[int]:
    """The events' positions by id, as another session sees them; fails if it is blocked."""
    with psycopg.connect(url, options="-c lock_timeout=2s") as connection:
        return [row[0] for row in connection.execute("SELECT position FROM events ORDER BY id").fetchall()]


def assert_whole(url: str) -> None:
    """The step is complete, and so are its indexes on every partition."""
    assert revision_of(url) == [AFTER]
    with psycopg.connect(url) as connection:
        invalid = connection.execute("SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid").fetchall()
        loose = connection.execute(
            "SELECT relname FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid"
            " WHERE relname LIKE 'events%_idx' AND NOT relispartition"
        ).fetchall()
    assert (invalid, loose) == ([], [])
    upgrade(url)
    command.check(alembic_config(url))


def test_old_events_get_positions_by_id_in_batches_and_new_ones_continue_after_them(url: str) -> None:
    batches: list[str] = []
    upgrade_watched(url, lambda statement: batches.append(statement) if "nextval" in statement else None, AFTER)
    assert positions(url) == list(range(1, EVENTS + 1))
    # Four of them, one for events that were written meanwhile, and the column's default.
    assert len(batches) == 6, batches
    with psycopg.connect(url) as connection:
        write(connection, new_id())
    assert positions(url)[-1] == EVENTS + 1
    assert_whole(url)


@pytest.mark.parametrize(
    "at",
    [
        ("UPDATE events", 3),
        ("SET DEFAULT", 1),
        ("VALIDATE", 1),
        ("SET NOT NULL", 1),
        ("CREATE INDEX CONCURRENTLY", 3),
        ("ATTACH PARTITION", 2),
        ("ATTACH PARTITION", 7),
    ],
)
def test_an_interrupted_run_is_resumed(url: str, at: tuple[str, int]) -> None:
    words, number = at
    seen = count(1)

    def kill(statement: str) -> None:
        if words in statement and next(seen) == number:
            raise Interrupted

    with pytest.raises(Interrupted):
        upgrade_watched(url, kill, AFTER)
    assert revision_of(url) == [BEFORE]
    upgrade(url, AFTER)
    found = positions(url)
    assert found == sorted(set(found)), "not by id, or not unique"
    assert len(found) == EVENTS
    assert_whole(url)


@pytest.mark.parametrize("moment", ["UPDATE events", "CREATE INDEX CONCURRENTLY", "VALIDATE"])
def test_writers_continue_meanwhile(url: str, moment: str) -> None:
    written: list[UUID] = []

    def write_one(statement: str) -> None:
        if moment in statement and not holds_lock(url):
            with psycopg.connect(url, options="-c lock_timeout=2s") as connection:
                written.append(new_id())
                write(connection, written[-1])

    upgrade_watched(url, write_one, AFTER)
    assert len(written) >= 1
    found = positions(url)
    assert len(found) == EVENTS + len(written)
    assert found == sorted(set(found))
    assert_whole(url)


def holds_lock(url: str) -> bool:
    """Whether the step keeps writers out at this moment."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'events'::regclass"
            " AND mode IN ('ShareRowExclusiveLock', 'AccessExclusiveLock'))"
        ).fetchone()
    assert row is not None
    return bool(row[0])


def test_a_broken_index_of_an_interrupted_run_is_rebuilt(url: str) -> None:
    with pytest.raises(Interrupted):
        upgrade_watched(url, interrupt_at("CREATE INDEX IF NOT EXISTS ix_events_position"), AFTER)
    with psycopg.connect(url) as connection:
        connection.execute("CREATE INDEX events_default_position_idx ON events_default (position)")
        connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'events_default_position_idx'::regclass"
        )
    upgrade(url, AFTER)
    assert_whole(url)


def test_the_downgrade_keeps_the_events(url: str) -> None:
    upgrade(url, AFTER)
    downgrade(url, BEFORE)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (EVENTS,)
        assert connection.execute("SELECT to_regclass('events_position_seq')").fetchone() == (None,)
    upgrade(url, AFTER)
    assert_whole(url)
