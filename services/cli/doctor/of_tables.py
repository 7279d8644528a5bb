"""Checks of the tables: indexes, constraints and triggers, the plan of a claim, vacuum, partitions, and space."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from datetime import date, timedelta
from typing import Any

from sqlalchemy import text

from services.cli.doctor.findings import Checked, Finding, problem, warning
from services.cli.doctor.installation import Installation
from services.models import metadata
from services.outbox.engine.queries import CLAIM
from services.outbox.models import MAX_POSITION
from services.outbox.retention.repository import (
    DEFAULT_PARTITION,
    MONTHS_AHEAD,
    existing_partitions,
    months_from,
    partition_name,
)
from services.safety import is_loopback
from services.skew import database_time
from services.sql import Statement
from services.subscriptions import SUBSCRIPTIONS

OUTBOX = "outbox"
_BY_INDEX = frozenset({"Index Scan", "Index Only Scan"})
"""How a claim may read the outbox. Which index is best depends on what waits: if all is of one type, any will do."""

_MANY_DEAD = 100_000
_LONG_AGO = 600.0
"""Dead rows of the outbox, and seconds since it was vacuumed, from which a warning is given if both are exceeded."""

_OLD_IDS = 1_000_000_000
"""The age of the oldest transaction id from which vacuum does not keep up. PostgreSQL stops at two billion."""

_SOON = timedelta(days=14)
"""How long before its month a partition must exist."""

_GIB = 2**30

_INDEXES = text("""
    SELECT class.relname AS name, bool_and(index.indisvalid AND index.indisready) AS valid
    FROM pg_index AS index JOIN pg_class AS class ON class.oid = index.indexrelid
    WHERE class.relnamespace = to_regnamespace(:schema) GROUP BY class.relname
""")

_SWITCHED_OFF = text("""
    SELECT 'the trigger ' || tgname || ' of ' || class.relname || ' is disabled' AS what
    FROM pg_trigger JOIN pg_class AS class ON class.oid = tgrelid
    WHERE class.relnamespace = to_regnamespace(:schema) AND tgenabled IN ('D', 'R')
    UNION ALL
    SELECT 'the constraint ' || conname || ' of ' || class.relname || ' is not validated'
    FROM pg_constraint JOIN pg_class AS class ON class.oid = conrelid
    WHERE class.relnamespace = to_regnamespace(:schema) AND NOT convalidated
    ORDER BY what
""")

_EXPLAIN = Statement(f"EXPLAIN (FORMAT JSON) {CLAIM.text}")

_VACUUM = text("""
    SELECT coalesce(n_live_tup, 0) AS live, coalesce(n_dead_tup, 0) AS dead,
        CAST(extract(epoch FROM clock_timestamp() - greatest(last_autovacuum, last_vacuum)) AS double precision)
            AS since,
        current_setting('autovacuum') = 'on' AND current_setting('track_counts') = 'on' AS on,
        (SELECT age(datfrozenxid) FROM pg_database WHERE datname = current_database()) AS oldest,
        ARRAY(
            SELECT CAST(relname AS text) FROM pg_class, pg_options_to_table(reloptions)
            WHERE relnamespace = to_regnamespace(:schema) AND option_name = 'autovacuum_enabled'
            AND NOT CAST(option_value AS boolean) ORDER BY relname <> 'outbox', relname
        ) AS without
    FROM pg_class LEFT JOIN pg_stat_user_tables AS seen ON seen.relid = pg_class.oid
    WHERE pg_class.relname = 'outbox' AND pg_class.relnamespace = to_regnamespace(:schema)
""")

_SIZES = text("""
    SELECT pg_database_size(current_database()) AS database, pg_total_relation_size('outbox') AS outbox,
        CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') END AS folder
""")


async def indexes(at: Installation) -> Checked:
    """Whether the indexes of this release are there and valid. Those of the outbox belong to `claim plan`."""
    found = await _indexes(at)
    wanted = {
        str(index.name): table.name
        for table in metadata.tables.values()
        if table.schema is None and table.name != OUTBOX
        for index in table.indexes
    }
    missing = {name: table for name, table in wanted.items() if name not in found}
    invalid = sorted(name for name, valid in found.items() if not valid)
    findings = [
        warning(
            f"the index {name} of {table} is missing",
            "Requests or jobs that use it read the whole table.",
            "Create it again as the migration that made it does: search for its name in migrations/versions.",
            f"grep -rn {name} migrations/versions",
        )
        for name, table in missing.items()
    ]
    findings += [
        warning(
            f"the index {name} is not valid: CREATE INDEX CONCURRENTLY was interrupted",
            "It is not used for reading, but costs each write.",
            "Build it again.",
            f'psql -c \'REINDEX INDEX CONCURRENTLY "{at.settings.database_schema}"."{name}"\'',
        )
        for name in invalid
    ]
    return Checked(f"{len(wanted) - len(missing)} of {len(wanted)} are there", findings)


async def protections(at: Installation) -> Checked:
    """Whether the triggers and constraints that protect the books are in force."""
    async with at.database.engine.connect() as connection:
        found = list(await connection.scalars(_SWITCHED_OFF, {"schema": at.settings.database_schema}))
    findings = [
        problem(
            what,
            "The database no longer refuses what it should: rows that contradict the books can be written.",
            "Switch it on again (ALTER TABLE ... ENABLE TRIGGER or VALIDATE CONSTRAINT), and audit the books.",
            "waybill ledger audit",
        )
        for what in found
    ]
    return Checked("triggers and constraints are in force" if not found else f"{len(found)} not in force", findings)


async def claim_plan(at: Installation) -> Checked:
    """Whether PostgreSQL would run a claim on the indexes made for it, with the settings of a worker."""
    present = {name for name, valid in (await _indexes(at)).items() if valid}
    wanted = {str(index.name) for index in metadata.tables[OUTBOX].indexes}
    if missing := sorted(wanted - present):
        return Checked(
            "an index is missing",
            [
                problem(
                    f"the outbox lacks {', '.join(missing)}",
                    "Each claim reads the whole backlog: workers become slower the more events wait.",
                    "Create it again as the migration that made it does: search for its name in migrations/versions.",
                    f"grep -rn {missing[0]} migrations/versions",
                )
            ],
        )
    async with at.claiming_work() as work:
        (row,) = await work.outbox.sql.fetch(_EXPLAIN, **_arguments())
    found = row["QUERY PLAN"]
    plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    scans = [node for node in _nodes(plan) if node.get("Relation Name") == OUTBOX]
    slow = sorted({node["Node Type"] for node in scans} - _BY_INDEX)
    if not slow:
        return Checked("it reads the outbox by its indexes")
    return Checked(
        "it does not use the indexes",
        [
            problem(
                f"the plan of a claim reads the outbox by {', '.join(slow)}",
                "Each claim reads the whole backlog: workers become slower the more events wait.",
                "Look for planner settings of the database or the role, such as enable_indexscan=off, and reset them.",
                "psql -c '\\drds'",
            )
        ],
    )


async def autovacuum(at: Installation) -> Checked:
    """Whether dead rows are removed from the outbox, and old transaction ids everywhere."""
    async with at.database.engine.connect() as connection:
        found = (await connection.execute(_VACUUM, {"schema": at.settings.database_schema})).one()
    findings: list[Finding] = []
    why = "Each processed event leaves a dead row. Claims read past them, and the table grows without end."
    if not found.on:
        findings.append(
            problem(
                "autovacuum is off for the whole server (autovacuum, track_counts)",
                why,
                "Switch it on.",
                "psql -c 'ALTER SYSTEM RESET autovacuum' -c 'ALTER SYSTEM RESET track_counts' "
                "-c 'SELECT pg_reload_conf()'",
            )
        )
    findings += [
        (problem if table == OUTBOX else warning)(
            f"autovacuum is switched off for the table {table}",
            why if table == OUTBOX else "Its dead rows are never removed, and its statistics become outdated.",
            "Switch it on again.",
            f'psql -c \'ALTER TABLE "{at.settings.database_schema}"."{table}" RESET (autovacuum_enabled)\'',
        )
        for table in found.without
    ]
    if not findings and found.dead > max(_MANY_DEAD, found.live) and (found.since or _LONG_AGO) >= _LONG_AGO:
        findings.append(
            warning(
                f"the outbox has {found.dead:,} dead rows and was not vacuumed for ten minutes",
                why,
                "Look at `snapshots` above: an old transaction may keep the rows. Otherwise vacuum the table.",
                "psql -c 'VACUUM (VERBOSE) outbox'",
            )
        )
    if found.oldest > _OLD_IDS:
        findings.append(
            problem(
                f"the oldest transaction id of the database is {found.oldest:,} transactions old",
                "At two billion, PostgreSQL accepts no more writes.",
                "Find out what stops vacuum (an old transaction, a prepared one, a replication slot); then run it.",
                "vacuumdb --freeze --all --jobs 2",
            )
        )
    since = "not vacuumed yet" if found.since is None else f"vacuumed {found.since / 60:.0f} min ago"
    return Checked(f"the outbox has {found.live:,} rows and {found.dead:,} dead ones; {since}", findings)


async def partitions(at: Installation) -> Checked:
    """Whether the event log has the months to come, and no events without one."""
    async with at.database.engine.connect() as connection:
        today: date = (await database_time(connection)).date()
        existing = await existing_partitions(connection)
        strays = (await connection.execute(text(f"SELECT EXISTS (SELECT FROM {DEFAULT_PARTITION})"))).scalar_one()  # noqa: S608
    missing = [month for month in months_from(today, MONTHS_AHEAD) if partition_name(*month) not in existing]
    findings = [
        (problem if date(*month, 1) <= today + _SOON else warning)(
            f"the event log has no partition for {month[0]}-{month[1]:02d}",
            "Events of that month go to the default partition, which cannot be dropped and is slow to split up.",
            "The job ensure_event_partitions creates it. Run it, and look why it failed: `waybill jobs list`.",
            "waybill jobs run ensure_event_partitions",
        )
        for month in missing
    ]
    if strays and not missing:
        findings.append(
            warning(
                f"{DEFAULT_PARTITION} holds events",
                "They are not dropped with their month, and slow down the creation of partitions.",
                "Find out how old they are; docs/how-to/follow-the-log.md says how they get a month.",
                f"psql -c 'SELECT min(occurred_at), max(occurred_at), count(*) FROM {DEFAULT_PARTITION}'",  # noqa: S608
            )
        )
    return Checked(f"{MONTHS_AHEAD + 1 - len(missing)} of {MONTHS_AHEAD + 1} months from now on are there", findings)


async def disk(at: Installation) -> Checked:
    """The size of the database, and what is free on its disk if that is this host's."""
    async with at.watching() as connection:
        found = (await connection.execute(_SIZES)).one()
    sizes = f"the database has {_size(found.database)}, the outbox {_size(found.outbox)}"
    is_here = is_loopback(at.settings.async_url().host or "localhost")
    # The address may be that of a container, with a folder that this host does not have.
    usage = await asyncio.to_thread(_usage, found.folder) if is_here and found.folder else None
    if usage is None:
        return Checked(sizes)
    return Checked(f"{sizes}; {_size(usage.free)} free", full(usage.free, usage.total))


def full(free: int, total: int) -> list[Finding]:
    """What to say about a disk with so many bytes free."""
    share = free / total
    what = f"the disk of the database has {_size(free)} free, {share:.0%}"
    why = "When it is full, PostgreSQL stops, and may not start again."
    do = "Make room or enlarge the disk. A replication slot or old months of the event log may take the space."
    if free < _GIB or share < 0.02:
        return [problem(what, why, do, "waybill jobs run drop_expired_events")]
    if free < 10 * _GIB and share < 0.1:
        return [warning(what, why, do)]
    return []


def _usage(folder: str) -> Any:
    with suppress(OSError):
        return shutil.disk_usage(folder)
    return None


async def _indexes(at: Installation) -> dict[str, bool]:
    async with at.database.engine.connect() as connection:
        rows = await connection.execute(_INDEXES, {"schema": at.settings.database_schema})
        return {row.name: row.valid for row in rows}


def _arguments() -> dict[str, Any]:
    """The arguments of a claim as a worker's first one has them."""
    types = [subscription.event.type for subscription in SUBSCRIPTIONS]
    each = len(types)
    return {
        "types": types,
        "starts": [0] * each,
        "ends": [MAX_POSITION] * each,
        "ready": [100] * each,
        "due": [50] * each,
        "versions": [subscription.event.version for subscription in SUBSCRIPTIONS],
        "floor": 0,
        "near": 600 * each,
    }


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
