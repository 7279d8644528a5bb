"""Checks of other sessions: who holds the oldest snapshot, and what a pooler in between does."""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.cli.doctor.findings import Checked, Finding, note, problem, warning
from services.cli.doctor.installation import PATIENCE, Installation
from services.cli.run import lasting
from services.connections import driver_of
from services.database import close, make_engine

_OURS = "waybill-"
_LISTED = 5

# Sessions of other databases do not keep rows of this one, but a standby's feedback does.
_HOLDERS = text("""
    SELECT pid, usename AS role, application_name AS application, state, backend_type AS kind,
        CAST(extract(epoch FROM clock_timestamp() - xact_start) AS double precision) AS seconds,
        CAST(extract(epoch FROM clock_timestamp() - state_change) AS double precision) AS still,
        left(regexp_replace(query, '\\s+', ' ', 'g'), 100) AS query
    FROM pg_stat_activity
    WHERE (datname = current_database() OR backend_type = 'walsender') AND pid <> pg_backend_pid()
    AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND backend_type <> 'autovacuum worker'
    ORDER BY xact_start
""")

# Of sessions of other roles, an ordinary role sees only that they hold a lock on their own virtual transaction.
_HIDDEN = text("""
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query = '<insufficient privilege>' AND usesysid IS NOT NULL
    AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'virtualxid' AND mode = 'ExclusiveLock' AND granted)
""")

_PREPARED = text("""
    SELECT gid, CAST(owner AS text) AS owner,
        CAST(extract(epoch FROM clock_timestamp() - prepared) AS double precision) AS seconds
    FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared
""")

_SLOTS = text("""
    SELECT CAST(slot_name AS text) AS name, CAST(pg_wal_lsn_diff(
        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn
    ) AS bigint) AS behind
    FROM pg_replication_slots WHERE NOT active ORDER BY slot_name
""")

_WHY = (
    "Rows that were deleted after it began cannot be removed: each claim reads past them, and the outbox and the "
    "other tables grow."
)


async def snapshots(at: Installation) -> Checked:
    """Who keeps dead rows from being removed: old transactions, prepared ones, and replication slots."""
    async with at.watching() as connection:
        sessions = (await connection.execute(_HOLDERS)).all()
        hidden: int = (await connection.execute(_HIDDEN)).scalar_one()
        prepared = (await connection.execute(_PREPARED)).all()
        slots = (await connection.execute(_SLOTS)).all()
    findings = [*_of_sessions(sessions, at), *_of_prepared(prepared, at.snapshot_limit), *map(_of_slot, slots)]
    if hidden:
        findings.append(
            note(
                f"{hidden} sessions of other roles are in a transaction; this role cannot see for how long",
                _WHY,
                "Let the doctor sign in with a role that sees them: set WAYBILL_ADMIN_DATABASE_URL, or grant "
                "pg_read_all_stats to the application's role.",
            )
        )
    ages = [one.seconds for one in (*sessions, *prepared) if one.seconds is not None]
    return Checked(f"the oldest is {lasting(max(ages))} old" if ages else "nothing holds one", findings)


def _of_sessions(sessions: Iterable[Row[Any]], at: Installation) -> list[Finding]:
    found = []
    for one in sessions:
        limit = at.snapshot_limit
        if str(one.application).startswith(_OURS):
            # An audit may hold a snapshot for that long.
            limit = max(limit, at.settings.audit_time_limit)
        if one.seconds is None or one.seconds < limit:
            continue
        is_idle = str(one.state).startswith("idle in transaction")
        who = f"session {one.pid} ({one.application or 'no application name'}, role {one.role})"
        doing = (
            f"has been idle in a transaction for {lasting(one.still)}"
            if is_idle
            else f"has been in a transaction for {lasting(one.seconds)}"
        )
        found.append(
            (problem if is_idle else warning)(
                f"{who} {doing}, which is {lasting(one.seconds)} old; its last statement: {one.query}",
                _WHY,
                "Have its user end the transaction, or end the session. To prevent it, set "
                "idle_in_transaction_session_timeout for that role.",
                f"psql -c 'SELECT pg_terminate_backend({one.pid})'",
            )
        )
    return found[:_LISTED]


def _of_prepared(prepared: Iterable[Row[Any]], limit: float) -> list[Finding]:
    return [
        problem(
            f"the transaction {one.gid!r} of {one.owner} has been prepared for {lasting(one.seconds)}, and is open",
            _WHY + " It also keeps its locks, even across restarts. Waybill prepares no transactions.",
            "Ask who owns it whether it has to be committed; otherwise roll it back.",
            f"psql -c \"ROLLBACK PREPARED '{one.gid}'\"",
        )
        for one in prepared
        if one.seconds >= limit
    ][:_LISTED]


def _of_slot(slot: Row[Any]) -> Finding:
    kept = f", and keeps {slot.behind / 2**20:,.0f} MiB of the write-ahead log" if slot.behind else ""
    return warning(
        f"no one reads the replication slot {slot.name}{kept}",
        "The server keeps what the slot has not read, dead rows perhaps included, until its disk is full.",
        "Start the standby or subscriber that it belongs to; if that will not return, drop the slot.",
        f"psql -c \"SELECT pg_drop_replication_slot('{slot.name}')\"",
    )


async def pooler(at: Installation) -> Checked:
    """Whether there is a pooler in between, its mode, and whether it gives a worker enough connections."""
    async with at.database.engine.connect() as connection:
        is_pooled = (await driver_of(connection)).is_pooled
    if not is_pooled:
        return Checked("none")
    wanted = at.settings.polling_connections
    async with at.claiming(wanted + 1) as engine:
        shares = await _shares_connections(engine)
        given = await _transactions_at_once(engine, wanted)
    findings = []
    if not shares:
        findings.append(
            note(
                "the pooler is in session mode, or has one server connection for each client",
                "That works, but saves no connections.",
                "Set pool_mode = transaction, or connect directly (docs/how-to/use-pgbouncer.md).",
            )
        )
    if given < wanted:
        findings.append(
            problem(
                f"the pooler ran {given} of {wanted} transactions at the same time; a worker needs {wanted}",
                "Each poll loop of a worker keeps a transaction open while it processes a batch. With fewer server "
                "connections, workers and requests wait for each other.",
                "Raise default_pool_size in pgbouncer.ini to WAYBILL_OUTBOX_CONCURRENCY + 1 for each worker, plus what "
                "requests need (docs/how-to/use-pgbouncer.md#choose-the-sizes).",
                "psql -p 6432 pgbouncer -c 'SHOW POOLS' -c 'SHOW CONFIG'",
            )
        )
    findings += await _of_migrations(at)
    return Checked("in transaction mode" if shares else "in session mode", findings)


async def _shares_connections(engine: AsyncEngine) -> bool:
    """Whether another client gets the server connection that a client has used before: as in transaction mode."""
    statement = text("SELECT pg_backend_pid()")
    async with engine.connect() as first, engine.connect() as second:
        seen: set[int] = set()
        for client in (first, second, first, second):
            seen.add((await client.execute(statement)).scalar_one())
            await client.rollback()
        return len(seen) == 1


async def _transactions_at_once(engine: AsyncEngine, wanted: int) -> int:
    """How many transactions the pooler runs at the same time, of so many that are wanted."""
    async with AsyncExitStack() as stack:
        for number in range(wanted):
            try:
                async with asyncio.timeout(PATIENCE / 2):
                    connection = await stack.enter_async_context(engine.connect())
                    await connection.execute(text("SELECT 1"))
            except (TimeoutError, SQLAlchemyError):
                return number
    return wanted


async def _of_migrations(at: Installation) -> list[Finding]:
    """A warning if migrations would go through the pooler, too."""
    engine = make_engine(at.settings, "doctor-owner", at.settings.owner_url(), pool_size=1, connect_timeout=PATIENCE)
    try:
        async with engine.connect() as connection:
            is_pooled = (await driver_of(connection)).is_pooled
    except (SQLAlchemyError, OSError):
        # The owner's address may not be known on this host, or not be for it.
        return []
    finally:
        await close(engine)
    if not is_pooled:
        return []
    return [
        warning(
            "WAYBILL_MIGRATION_DATABASE_URL is not set, or leads to the pooler",
            "Migrations hold a lock of their session, which a pooler in transaction mode does not keep: "
            "`waybill migrate` refuses to run.",
            "Set WAYBILL_MIGRATION_DATABASE_URL to the address of PostgreSQL itself, with the tables' owner.",
        )
    ]
