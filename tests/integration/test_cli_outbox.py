"""`waybill outbox`: what the commands print, what they change, and their exit codes."""

import getpass
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.settings import Settings
from tests.processes import ROOT, environment_of
from tests.roles import superuser_of

pytestmark = pytest.mark.usefixtures("_settings_of_commands")


@pytest.fixture
def database(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """Three dead letters of one kind; an event waits behind the second one."""
    with psycopg.connect(superuser_of(settings), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint, failures)"
            " SELECT -n, gen_random_uuid(), 'order/' || n, 'order.placed', 5, E'Traceback\\nValueError: no ' || n,"
            ' \'abc\', \'[{"at": "2026-01-01", "attempt": 1, "error": "first"}]\' FROM generate_series(1, 3) AS n'
        )
        connection.execute("UPDATE dead_letters SET position = nextval('outbox_position_seq')")
        connection.execute(
            "INSERT INTO outbox (event_id, aggregate, type, waits, available_at)"
            " VALUES (gen_random_uuid(), 'order/2', 'order.placed', 'behind', 'infinity')"
        )
        yield connection


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["outbox", *arguments])
    assert result.exit_code == code, result.output
    return result


def in_all(*arguments: str, code: int = 0) -> Result:
    """A command of another group."""
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == code, result.output
    return result


def read(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


def count(database: psycopg.Connection[Any], table: str) -> int:
    found = database.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert found is not None
    return int(found[0])


def test_why_shows_which_event_another_waits_for_and_its_error(database: psycopg.Connection[Any]) -> None:
    said = run("why", "order/2").output
    assert "dead letter after 5 attempts" in said
    assert "behind position" in said
    assert "ValueError: no 2" in said
    (_, behind) = read("why", "order/2")
    assert (behind["state"], behind["blocker"]["state"]) == ("behind", "dead")
    assert read("why", str(behind["position"]))[0]["blocker"]["error"] == "ValueError: no 2"
    assert "no event of order/9 is waiting" in run("why", "order/9", code=1).output
    assert "is not an event id" in run("why", "nonsense", code=1).output


def test_why_takes_any_id(database: psycopg.Connection[Any]) -> None:
    order = "0193f0e4-0000-7000-8000-000000000000"
    database.execute(
        "WITH e AS (INSERT INTO events (id, type, version, aggregate, payload)"
        " VALUES (gen_random_uuid(), 'order.placed', 1, %s, '{}') RETURNING *)"
        " INSERT INTO outbox (event_id, aggregate, type) SELECT id, aggregate, type FROM e",
        [f"order/{order}"],
    )
    (of_order,) = read("why", f"order/{order}")
    for what in (order, order.upper(), order.replace("-", ""), of_order["event_id"], str(of_order["position"])):
        assert read("why", what) == [of_order], what
    assert [one["state"] for one in read("why", "2")] in (["dead"], ["dead", "behind"])
    other = order.replace("4", "5")
    assert f"no waiting event matches '{other}': it was processed" in run("why", other, code=1).output


def test_an_event_type_that_does_not_exist_is_refused_with_the_nearest_one(database: psycopg.Connection[Any]) -> None:
    for command in (["pause"], ["resume"], ["limit"]):
        arguments = [*command, "order.konfirmed", *(["2"] if command == ["limit"] else [])]
        said = run(*arguments, code=1).output
        assert "there is no event type 'order.konfirmed'; did you mean 'order.confirmed'?" in " ".join(said.split())
    assert "known types: " in run("pause", "nonsense", code=1).output
    assert count(database, "outbox_types") == count(database, "outbox_actions") == 0
    # Defined by the code, although there is no event of it.
    run("pause", "order.confirmed")


def test_dead_letters_are_listed_grouped_and_shown(database: psycopg.Connection[Any]) -> None:
    listed = read("dead-letters", "list", "--type", "order.placed")
    assert len(listed) == 3
    assert "order/3" in run("dead-letters", "list").output
    assert [one["message"] for one in listed] == [f"ValueError: no {number}" for number in (1, 2, 3)]
    assert "ValueError: no 3" in run("dead-letters", "list").output
    (group,) = read("dead-letters", "groups")["data"]
    assert (group["letters"], group["fingerprint"]) == (3, "abc")
    position = str(listed[0]["position"])
    shown = run("dead-letters", "show", position).output
    assert "Traceback" in shown
    assert "attempt 1: first" in shown
    assert "message      ValueError: no 1" in shown
    assert read("dead-letters", "show", position)["attempts"] == 5
    run("dead-letters", "show", "999", code=1)


def test_events_that_wait_are_listed_by_reason(database: psycopg.Connection[Any]) -> None:
    database.execute(
        "INSERT INTO outbox (event_id, aggregate, type, available_at, waits, attempts, last_error)"
        " SELECT gen_random_uuid(), 'order/' || n, 'order.waits', now() + interval '1 h', 'retry', 2, 'ValueError: no'"
        " FROM generate_series(1, 3) AS n"
    )
    shown = run("waiting", "order.waits", "--limit", "2").output
    assert "order/1" in shown
    assert "ValueError: no" in shown
    page = read("waiting", "order.waits", "--reason", "retry", "--limit", "2")
    assert [one["attempts"] for one in page["data"]] == [2, 2]
    (last,) = read("waiting", "order.waits", "--cursor", page["next_cursor"])["data"]
    assert last["aggregate"] == "order/3"
    assert read("waiting", "order.waits", "--reason", "ready")["data"] == []
    assert "3 retry" in run("types").output


def test_groups_of_failures_are_filtered_and_drawn(database: psycopg.Connection[Any]) -> None:
    database.execute("UPDATE dead_letters SET reason = 'time_limit', died_at = now()")
    shown = run("dead-letters", "groups", "--failure-reason", "time_limit", "--window", "hour").output
    assert "█" in shown
    assert "time_limit" in shown
    assert read("dead-letters", "groups", "--failure-reason", "unreadable")["data"] == []
    assert read("replay", "--failure-reason", "time_limit", "--dry-run")["matching"] == 3
    assert len(read("dead-letters", "list", "--failure-reason", "time_limit")) == 3


def test_a_dry_run_changes_nothing_and_discarding_asks_and_needs_a_reason(database: psycopg.Connection[Any]) -> None:
    arguments = ("discard", "--fingerprint", "abc", "--reason", "known bug")
    assert "Would discard 3 dead letters" in run(*arguments, "--dry-run").output
    run(*arguments, code=1)  # no answer to the prompt
    assert "a reason is required" in run("discard", "--fingerprint", "abc", "--yes", code=1).output
    assert count(database, "dead_letters") == 3
    assert run(*arguments, "--yes", "--actor", "olga").output == "discard: 3 dead letters.\n"
    assert count(database, "dead_letters") == 0
    assert count(database, "outbox_actions WHERE actor = 'olga' AND reason = 'known bug'") == 3
    assert count(database, "outbox WHERE available_at <= now()") == 1


def test_replaying_a_fingerprint_puts_back_all_its_dead_letters(database: psycopg.Connection[Any]) -> None:
    assert read("replay", "--fingerprint", "abc", "--yes") == {"done": 3}
    assert count(database, "outbox WHERE waits = 'retry'") == 3
    assert "no dead letter matches" in run("replay", "--fingerprint", "abc", "--yes", code=1).output
    assert "select dead letters by" in run("replay", "--yes", code=1).output


def test_one_dead_letter_is_not_dead_letters(database: psycopg.Connection[Any]) -> None:
    arguments = ("replay", "--aggregate", "order/1")
    assert "Would replay 1 dead letter:" in run(*arguments, "--dry-run").output
    assert "replay 1 dead letter?" in run(*arguments, code=1).output
    assert run(*arguments, "--yes").output == "replay: 1 dead letter.\n"
    assert run("replay", "--type", "order.placed", "--yes").output == "replay: 2 dead letters.\n"
    assert run("limit", "order.placed", "1").output == "order.placed: at most 1 concurrent batch.\n"
    assert run("limit", "order.placed", "2").output == "order.placed: at most 2 concurrent batches.\n"
    assert run("limit", "order.placed", "0").output == "order.placed: no limit.\n"


def test_types_are_paused_limited_and_resumed(database: psycopg.Connection[Any]) -> None:
    run("pause", "order.placed", "--reason", "maintenance")
    run("limit", "order.placed", "2")
    (state,) = read("types")
    assert (state["paused"], state["max_batches"], state["dead_letters"], state["waiting"]) == (True, 2, 3, 1)
    assert "paused" in run("types").output
    run("resume", "order.placed")
    run("limit", "order.placed", "0")
    (state,) = read("types")
    assert (state["paused"], state["max_batches"]) == (False, None)
    assert count(database, "outbox_actions") == 4
    assert read("status")["dead_letters"] == 3
    assert "dead letters" in run("status").output


def test_deferred_events_are_listed_and_cancelled(database: psycopg.Connection[Any]) -> None:
    database.execute(
        "WITH e AS (INSERT INTO events (id, type, version, aggregate, payload)"
        " VALUES (gen_random_uuid(), 'order.placed', 1, 'order/7', '{}') RETURNING *)"
        " INSERT INTO outbox (event_id, aggregate, type, waits, available_at)"
        " SELECT id, aggregate, type, 'asked', now() + interval '1 hour' FROM e"
    )
    (one,) = read("deferred")["data"]
    assert "order/7" in run("deferred", "--aggregate", "order/7").output
    run("cancel", one["event_id"])
    assert read("deferred")["data"] == []
    run("cancel", one["event_id"], code=1)


def test_waiting_events_are_retried_buried_and_discarded_by_position_or_id(database: psycopg.Connection[Any]) -> None:
    database.execute("DELETE FROM outbox")
    found = database.execute(
        "WITH e AS (INSERT INTO events (id, type, version, aggregate, payload)"
        " SELECT gen_random_uuid(), 'order.placed', 1, 'order/' || n, '{}' FROM generate_series(7, 10) AS n"
        " RETURNING *)"
        " INSERT INTO outbox (event_id, aggregate, type, waits, available_at, attempts)"
        " SELECT id, aggregate, type, 'retry', now() + interval '1 hour', 1 FROM e RETURNING position, event_id"
    ).fetchall()
    (retried, _), (_, buried), (by_position, _), (_, by_id) = found
    assert run("retry-now", str(retried)).output == f"Event {retried} is due now.\n"
    assert run("bury", str(buried), "--actor", "olga").output == f"Event {buried} is a dead letter.\n"
    assert "a reason is required" in run("discard", "--waiting", str(by_position), "--yes", code=1).output
    why = ("--reason", "known bug")
    run("discard", "--waiting", str(by_position), *why, code=1)  # nobody answers the question
    assert run("discard", "--waiting", str(by_position), *why, "--yes").output == f"Event {by_position} is discarded.\n"
    run("discard", "--waiting", "--event", str(by_id), *why, "--yes")
    assert count(database, "outbox") == count(database, "outbox WHERE available_at <= now()") == 1
    assert count(database, "outbox_actions WHERE action = 'bury' AND actor = 'olga'") == 1
    assert count(database, "outbox_actions WHERE action = 'discard' AND reason = 'known bug'") == 2
    assert "is not a position or an event id" in run("bury", "nonsense", code=1).output
    assert "no event waits at position 99999" in run("retry-now", "99999", code=1).output
    run("discard", "--waiting", "--type", "order.placed", *why, "--yes", code=2)
    run("discard", "--waiting", "1", "--dry-run", code=2)


def test_consumers_are_listed_with_their_lag_reset_and_deleted(database: psycopg.Connection[Any]) -> None:
    assert "search-index" not in run("consumers", "list").output
    database.execute(
        "INSERT INTO events (id, type, version, aggregate, payload, occurred_at)"
        " SELECT gen_random_uuid(), 'order.placed', 1, 'order/7', '{}', now() - interval '1 hour'"
        " FROM generate_series(1, 3)"
    )
    database.execute("INSERT INTO log_consumers (name, seen) VALUES ('search-index', '1:1:')")
    (lag,) = read("consumers", "list")
    assert (lag["name"], lag["events"]) == ("search-index", 3)
    assert "60 min" in run("consumers", "list").output
    run("consumers", "reset", "search-index", "--to", "now", code=1)  # nobody answers the question
    said = run("consumers", "reset", "search-index", "--to", "now", "--yes", "--actor", "olga").output
    assert said == "Consumer search-index continues at now.\n"
    assert read("consumers", "list")[0]["events"] == 0
    run("consumers", "reset", "search-index", "--to", "beginning", "--yes")
    assert read("consumers", "list")[0]["events"] == 3
    assert run("consumers", "delete", "search-index", "--yes", "--reason", "unused").output == (
        "Consumer search-index is deleted.\n"
    )
    for command in (["reset", "search-index", "--to", "now"], ["delete", "search-index"]):
        assert "'search-index' does not exist" in run("consumers", *command, "--yes", code=1).output
    audited = database.execute("SELECT action, detail ->> 'consumer' FROM outbox_actions ORDER BY id").fetchall()
    assert audited == [(act, "search-index") for act in ("reset_to_now", "reset_to_beginning", "delete_consumer")]
    assert consumer_acts(database) == [
        ("command:outbox consumers reset", "consumer.reset", "consumer/search-index", "", "olga"),
        ("command:outbox consumers reset", "consumer.reset", "consumer/search-index", "", getpass.getuser()),
        ("command:outbox consumers delete", "consumer.deleted", "consumer/search-index", "unused", getpass.getuser()),
    ]


def consumer_acts(database: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    """The acts on consumers in the audit log."""
    return database.execute(
        "SELECT actor, action, object, reason, details ->> 'by' FROM audit_log"
        " WHERE action LIKE 'consumer.%' ORDER BY id"
    ).fetchall()


@pytest.mark.parametrize(
    "commit",
    [
        pytest.param("RAISE WARNING 'no standby confirmed it'", id="unproven"),
        pytest.param("PERFORM pg_terminate_backend(pg_backend_pid())", id="unanswered"),
    ],
)
def test_a_commit_whose_outcome_is_unknown_tells_the_operator_to_check(
    database: psycopg.Connection[Any], settings: Settings, commit: str
) -> None:
    database.execute(
        f"CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {commit}; RETURN NULL; END $$"
    )
    database.execute(
        "CREATE CONSTRAINT TRIGGER meddle AFTER INSERT ON outbox_actions DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION meddle()"
    )
    # In a process of its own: that would also show what the driver and the event loop print.
    result = subprocess.run(
        [sys.executable, "-m", "services.cli", "outbox", "pause", "order.placed", "--reason", "maintenance"],
        cwd=ROOT,
        env=environment_of(settings),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == (
        "waybill: the database did not confirm the commit; check whether the command took effect before repeating it"
    )


def test_consumers_are_paused_and_resumed_and_the_health_check_reports_one_that_keeps_failing(
    database: psycopg.Connection[Any],
) -> None:
    database.execute(
        "INSERT INTO log_consumers (name, seen, lease_token, failed_in_a_row, error, retry_at)"
        " VALUES ('feed', '1:1:', 3, 2, 'ValueError(1)', now() + interval '1 minute'),"
        " ('by-hand', '1:1:', 0, 0, NULL, NULL)"
    )
    (by_hand, feed) = read("consumers", "list")
    assert (by_hand["state"], feed["state"], feed["error"]) == ("manual", "failing", "ValueError(1)")
    assert "failed 2 times" in run("consumers", "list").output
    complaints = in_all("workers", "check", code=1).output
    assert "log consumer feed: it has failed 2 times in a row: ValueError(1)" in complaints
    assert "paused" in run("consumers", "pause", "feed", "--actor", "ann", "--reason", "wrong sums").output
    (_, feed) = read("consumers", "list")
    assert (feed["state"], feed["paused_by"]) == ("paused", "ann")
    assert "log consumer" not in in_all("workers", "check", code=1).output
    run("consumers", "resume", "feed", "--actor", "ann")
    assert read("consumers", "list")[1]["retry_at"] is None
    actions = database.execute(
        "SELECT action, detail ->> 'consumer', reason FROM outbox_actions ORDER BY id"
    ).fetchall()
    assert actions == [("pause_consumer", "feed", "wrong sums"), ("resume_consumer", "feed", "")]
    assert [(action, *more) for _, action, *more in consumer_acts(database)] == [
        ("consumer.paused", "consumer/feed", "wrong sums", "ann"),
        ("consumer.resumed", "consumer/feed", "", "ann"),
    ]
    assert "never been run by a worker" in run("consumers", "pause", "by-hand", code=1).output
