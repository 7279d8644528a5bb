"""A healthy installation for the tests of `waybill doctor`, and what it says."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import psycopg
from pydantic import SecretStr
from pydantic_core import to_json

from services.cli.doctor.findings import Outcome, State
from services.cli.doctor.run import CHECKS, examine
from services.settings import Environment, Settings
from services.subscriptions import SUBSCRIPTIONS
from tests.roles import superuser_of

WORKER = """
    INSERT INTO workers (id, host, pid, started_at, beat_at, progress_at, report) VALUES
    (gen_random_uuid(), 'here', 1, now() + interval '1 h', now() + interval '1 h', now() + interval '1 h', %s)
"""
"""A worker that stays alive for an hour."""

JOB = """
    INSERT INTO jobs (name, schedule, due_at) VALUES ('expire', 'each minute, at second 30', now() + interval '1 h')
"""

STRONG = "0lrJh3uOCY_x5rQTmXgD4RkD0S8EoVvX6sR1nNqk2yU"


def report(**changes: Any) -> str:
    """What a healthy worker of this release reports about itself."""
    versions = {one.event.type: one.event.version for one in SUBSCRIPTIONS}
    whole = {
        "types": sorted(versions),
        "versions": versions,
        "schedules": ["expire"],
        "time_limit": 30.0,
        "version": version("waybill"),
        "clock_skew": 0.001,
    }
    return to_json(whole | changes).decode()


@contextmanager
def healthy(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """A superuser's connection to a healthy installation, in autocommit mode."""
    with psycopg.connect(superuser_of(settings), autocommit=True) as connection:
        connection.execute(WORKER, [report()])
        connection.execute(JOB)
        yield connection


def in_production(settings: Settings) -> Settings:
    """Settings with which production starts."""
    changes = {
        "environment": Environment.production,
        "secret_key": SecretStr(STRONG),
        "mail_url": SecretStr("smtp://localhost:25"),
        "argon2_memory_kib": 12_288,
        "argon2_time_cost": 3,
    }
    return settings.model_copy(update=changes)


async def examined(settings: Settings, **options: Any) -> list[Outcome]:
    """The outcomes of the checks; of sessions, those are reported that are in a transaction for a moment already.

    The servers of the tests are fast and not durable, which has a test of its own.
    """
    checks = [check for check in CHECKS if check.name != "durability"]
    return await examine(settings, **{"snapshot_limit": 0.0, "checks": checks, **options})


def found(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    """The check, the severity and the text of each finding, and each check that failed."""
    failed = [(one.name, one.state.value, one.saw) for one in outcomes if one.state is State.failed]
    return failed + [(one.name, finding.severity.value, finding.found) for one in outcomes for finding in one.findings]


async def only(settings: Settings, check: str, severity: str, *words: str, **options: Any) -> Outcome:
    """The outcome of the one check that has found something: one finding of this severity with these words."""
    outcomes = await examined(settings, **options)
    all_found = found(outcomes)
    assert len(all_found) == 1, all_found
    ((name, how_bad, what),) = all_found
    assert (name, how_bad) == (check, severity), what
    for word in words:
        assert word in what
    (outcome,) = (one for one in outcomes if one.name == check)
    (finding,) = outcome.findings
    assert finding.why.endswith(".")
    assert finding.do.endswith((".", "--help`.", ")", "`."))
    return outcome
