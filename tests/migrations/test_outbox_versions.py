"""A migration that changes data only: in batches, beside workers that hold rows, interrupted and resumed."""

from collections.abc import Callable
from math import ceil

import psycopg
import pytest

import migrations.batches
from tests.migrations.schema import downgrade, read_schema, revision_of, upgrade
from tests.migrations.watched import Interrupted, revision_before, step_named, upgrade_watched

ROWS = 20
BATCH = 6

STEP = step_named("outbox_versions").id
BEFORE = revision_before("outbox_versions")


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


def upgrade_noting(url: str, at_each: Callable[[int], None]) -> int:
    """Upgrade, and call `at_each` with its number before each UPDATE of the outbox; returns how many there were.

    Fails if a statement waits for a lock.
    """
    seen = 0

    def show(statement: str) -> None:
        nonlocal seen
        if statement.startswith("UPDATE outbox"):
            seen += 1
            at_each(seen)

    upgrade_watched(url, show, STEP, options="-c lock_timeout=5s")
    return seen


def test_every_waiting_event_gets_its_version_and_each_batch_is_committed(url: str) -> None:
    without = [position for position, has in filled(url).items() if not has]
    committed: list[int] = []
    batches = upgrade_noting(url, lambda _: committed.append(sum(filled(url)[position] for position in without)))
    assert all(filled(url).values())
    assert batches == ceil(len(without) / BATCH)
    assert committed == list(range(0, len(without), BATCH))
    assert revision_of(url) == [STEP]


def test_an_interrupted_run_continues_where_it_stopped(url: str) -> None:
    without = [position for position, has in filled(url).items() if not has]

    def kill_at_the_second(number: int) -> None:
        if number == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        upgrade_noting(url, kill_at_the_second)
    assert revision_of(url) == [BEFORE]
    assert [position for position, has in filled(url).items() if not has] == without[BATCH:]
    batches = upgrade_noting(url, lambda _: None)
    assert batches == ceil((len(without) - BATCH) / BATCH)
    assert all(filled(url).values())


def test_an_event_that_a_worker_holds_is_left_out_and_holds_nothing_up(url: str) -> None:
    held = next(position for position, has in filled(url).items() if not has)
    with psycopg.connect(url) as worker:
        worker.execute("SELECT FROM outbox WHERE position = %s FOR UPDATE", [held])
        upgrade_noting(url, lambda _: None)
        assert [position for position, has in filled(url).items() if not has] == [held]
        worker.rollback()
    downgrade(url, BEFORE)
    upgrade(url, STEP)
    assert all(filled(url).values())


def test_only_data_changes(url: str) -> None:
    before = read_schema(url)
    upgrade(url, STEP)
    assert read_schema(url) == before
    rows = filled(url)
    downgrade(url, BEFORE)
    assert (read_schema(url), filled(url)) == (before, rows)
