"""Runs the checks, one after the other. One that fails, or takes too long, does not end the others."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from time import monotonic
from typing import NamedTuple

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from services.cli.doctor import of_database, of_redis, of_roles, of_sessions, of_settings, of_tables, of_work
from services.cli.doctor.findings import Checked, Outcome, State, state_of
from services.cli.doctor.installation import Installation, open_installation
from services.settings import Settings
from services.startup import reason_of

LIMIT = 15.0
"""Time limit for one check, in seconds. Each of its statements has a shorter one."""

_DATABASE, _TABLES = "database", "migrations"


class Check(NamedTuple):
    """A check with its name; `after` are those that it depends on."""

    name: str
    run: Callable[[Installation], Awaitable[Checked]]
    after: Sequence[str] = ()


CHECKS = (
    Check("settings", of_settings.settings),
    Check("tls", of_settings.tls),
    Check(_DATABASE, of_database.database),
    Check("durability", of_database.durability, (_DATABASE,)),
    Check(_TABLES, of_database.migrations, (_DATABASE,)),
    Check("origin", of_database.where_from, (_DATABASE, _TABLES)),
    Check("role", of_roles.role, (_DATABASE,)),
    Check("grants", of_roles.grants, (_DATABASE, _TABLES)),
    Check("isolation", of_database.isolation, (_DATABASE,)),
    Check("clocks", of_database.clocks, (_DATABASE,)),
    Check("connections", of_database.connections, (_DATABASE,)),
    Check("pooler", of_sessions.pooler, (_DATABASE,)),
    Check("replica", of_database.replica, (_DATABASE,)),
    Check("analytics", of_database.analytics),
    Check("redis", of_redis.redis),
    Check("indexes", of_tables.indexes, (_DATABASE, _TABLES)),
    Check("protections", of_tables.protections, (_DATABASE, _TABLES)),
    Check("claim plan", of_tables.claim_plan, (_DATABASE, _TABLES)),
    Check("snapshots", of_sessions.snapshots, (_DATABASE,)),
    Check("autovacuum", of_tables.autovacuum, (_DATABASE, _TABLES)),
    Check("partitions", of_tables.partitions, (_DATABASE, _TABLES)),
    Check("disk", of_tables.disk, (_DATABASE, _TABLES)),
    Check("workers", of_work.workers, (_DATABASE, _TABLES)),
    Check("events", of_work.events, (_DATABASE, _TABLES)),
    Check("dead letters", of_work.dead_letters, (_DATABASE, _TABLES)),
    Check("jobs", of_work.jobs, (_DATABASE, _TABLES)),
    Check("consumers", of_work.consumers, (_DATABASE, _TABLES)),
    Check("audit", of_work.audit, (_DATABASE, _TABLES)),
)


async def examine(
    settings: Settings, *, snapshot_limit: float = 60.0, checks: Sequence[Check] = CHECKS, limit: float = LIMIT
) -> list[Outcome]:
    """The outcome of each check. `snapshot_limit` and `limit`, of one check, are seconds."""
    outcomes: dict[str, Outcome] = {}
    async with open_installation(settings, snapshot_limit) as installation:
        for check in checks:
            stopped = next(_stopping(check, outcomes), None)
            outcomes[check.name] = (
                await _run(check, installation, limit)
                if stopped is None
                else Outcome(check.name, State.skipped, f"because of `{stopped}`", is_final=True)
            )
    return list(outcomes.values())


def _stopping(check: Check, outcomes: dict[str, Outcome]) -> Iterator[str]:
    for name in check.after:
        if outcomes[name].is_final:
            yield name


async def _run(check: Check, installation: Installation, limit: float) -> Outcome:
    began = monotonic()
    try:
        async with asyncio.timeout(limit):
            checked = await check.run(installation)
    except Exception as error:  # noqa: BLE001  (whatever it is, the other checks may succeed)
        return Outcome(check.name, State.failed, _why(error), seconds=monotonic() - began, is_final=True)
    state = state_of(checked.findings)
    return Outcome(check.name, state, checked.saw, checked.findings, monotonic() - began, checked.is_final)


def _why(error: Exception) -> str:
    if isinstance(error, DBAPIError | PoolTimeout | OSError):
        return f"the check itself failed: {reason_of(error)}"
    return f"the check itself failed: {type(error).__name__}: {' '.join(str(error).split())}"
