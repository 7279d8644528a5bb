"""A migration that changes data only: in batches, beside workers that hold rows, interrupted and resumed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, create_engine, event, make_url
from sqlalchemy.pool import NullPool

import migrations.batches
from migrations.config import alembic_config
from tests.migrations.schema import downgrade, read_schema, revision_of, upgrade

ROWS = 20
BATCH = 6


class Interrupted(Exception):
    """Stands for a release step that is killed."""


def find() -> Script:
    scripts = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    (found,) = (script for script in scripts if Path(script.path).name.endswith("_outbox_versions.py"))
    return found


STEP = find()
BEFORE = str(STEP.down_revision)


@pytest.fixture
def url(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database before the migration. Of its waiting events, each third was written with its version."""
    monkeypatch.setattr(migrations.batches, "BATCH_SIZE", BATCH)
    upgrade(empty_database_url, BEFORE)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(
            "WITH logged AS (INSERT INTO events (id, type, version, aggregate, payload)"
            " SELECT gen_random_uuid(), 'a', 1 + mod(number, 2), 'b', '{}' FROM generate_series(1, %s) AS number"
            " RETURNING id, version)"
            " INSERT INTO outbox (event_id, aggregate, type) SELECT id, 'b', 'a' FROM logged",
            [ROWS],
        )
        connection.execute(
            "UPDATE outbox SET version = events.version FROM events WHERE id = event_id AND mod(outbox.position, 3) = 0"
        )
    return empty_database_url


def filled(url: str) -> dict[int, bool]:
    """Whether each outbox row has its event's version, as another session sees it. Fails if one has another."""
    with psycopg.connect(url, options="-c lock_timeout=2s") as connection:
        rows = connection.execute(
            "SELECT outbox.position, outbox.version, events.version FROM outbox JOIN events ON events.id = event_id"
            " ORDER BY 1"
        ).fetchall()
    assert all(version in (None, logged) for _, version, logged in rows)
    return {position: version is not None for position, version, _ in rows}


@contextmanager
def updates(url: str, at_each: Callable[[int], None]) -> Iterator[list[str]]:
    """Upgrade when the block ends, and call `at_each` with its number before each UPDATE of the outbox.

    Fails if a statement waits for a lock.
    """
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        poolclass=NullPool,
        connect_args={"options": "-c lock_timeout=5s"},
    )
    seen: list[str] = []

    def show(_connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
        if statement.startswith("UPDATE outbox"):
            seen.append(statement)
            at_each(len(seen))

    event.listen(engine, "before_cursor_execute", show)
    yield seen
    config = alembic_config()
    config.attributes["engine"] = engine
    try:
        command.upgrade(config, STEP.revision)
    finally:
        engine.dispose()


def test_every_waiting_event_gets_its_version_and_each_batch_is_committed(url: str) -> None:
    without = [position for position, has in filled(url).items() if not has]
    committed: list[int] = []
    with updates(url, lambda _: committed.append(sum(filled(url)[position] for position in without))) as batches:
        pass
    assert all(filled(url).values())
    assert len(batches) == ceil(len(without) / BATCH)
    assert committed == list(range(0, len(without), BATCH))
    assert revision_of(url) == [STEP.revision]


def test_an_interrupted_run_continues_where_it_stopped(url: str) -> None:
    without = [position for position, has in filled(url).items() if not has]

    def kill_at_the_second(number: int) -> None:
        if number == 2:
            raise Interrupted

    with pytest.raises(Interrupted), updates(url, kill_at_the_second):
        pass
    assert revision_of(url) == [BEFORE]
    assert [position for position, has in filled(url).items() if not has] == without[BATCH:]
    with updates(url, lambda _: None) as batches:
        pass
    assert len(batches) == ceil((len(without) - BATCH) / BATCH)
    assert all(filled(url).values())


def test_an_event_that_a_worker_holds_is_left_out_and_holds_nothing_up(url: str) -> None:
    held = next(position for position, has in filled(url).items() if not has)
    with psycopg.connect(url) as worker:
        worker.execute("SELECT FROM outbox WHERE position = %s FOR UPDATE", [held])
        with updates(url, lambda _: None):
            pass
        assert [position for position, has in filled(url).items() if not has] == [held]
        worker.rollback()
    downgrade(url, BEFORE)
    upgrade(url, STEP.revision)
    assert all(filled(url).values())


def test_only_data_changes(url: str) -> None:
    before = read_schema(url)
    upgrade(url, STEP.revision)
    assert read_schema(url) == before
    rows = filled(url)
    downgrade(url, BEFORE)
    assert (read_schema(url), filled(url)) == (before, rows)
