"""Checks of the server: whether it answers, its tables' revision, where it came from, and what its defaults are."""

from sqlalchemy import text

from services.analytics import TablesMissing
from services.budget import measure_pool_budget
from services.cli.doctor.findings import Checked, problem, warning
from services.cli.doctor.installation import Installation
from services.outbox.control import service as control
from services.outbox.origin import service as origin
from services.skew import WORTH_A_WARNING, measure
from services.startup import DatabaseAway, Schema, ServerTooOld, check_server

_SERVER = text("""
    SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS standby,
        current_setting('default_transaction_read_only') = 'on' AS read_only,
        (SELECT count(*) FROM pg_stat_activity WHERE usesysid IS NOT NULL) AS connections
""")

_DURABLE = text("""
    SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
        current_setting('synchronous_commit') AS synchronous_commit
""")

_CROWDED = 0.9
"""The share of the server's connections from which a warning is given."""

_PROPER = "read committed"


async def database(at: Installation) -> Checked:
    """Whether the primary answers, is new enough and accepts writes."""
    try:
        await check_server(at.database.engine, at.settings)
    except DatabaseAway as error:
        return Checked(
            "it does not answer",
            [
                problem(
                    str(error),
                    "Nothing works without the database: the API answers 503, and events wait.",
                    "Start PostgreSQL, or correct WAYBILL_DATABASE_URL; then check the network and pg_hba.conf.",
                    "pg_isready",
                )
            ],
            is_final=True,
        )
    except ServerTooOld as error:
        return Checked(
            "it is too old",
            [problem(str(error), "Statements fail on it.", "Upgrade the server with pg_upgrade.")],
            is_final=True,
        )
    async with at.database.engine.connect() as connection:
        found = (await connection.execute(_SERVER)).one()
    if not (found.standby or found.read_only):
        return Checked(f"PostgreSQL {found.version.split()[0]}")
    why = "is a standby" if found.standby else "refuses writes (default_transaction_read_only)"
    return Checked(
        f"PostgreSQL {found.version.split()[0]}, read-only",
        [
            problem(
                f"the server at WAYBILL_DATABASE_URL {why}",
                "Orders can be neither placed nor processed.",
                "Point WAYBILL_DATABASE_URL at the primary."
                if found.standby
                else "Find out who set default_transaction_read_only, and reset it.",
            )
        ],
    )


async def durability(at: Installation) -> Checked:
    """Whether what the database has acknowledged survives a crash."""
    async with at.database.engine.connect() as connection:
        found = (await connection.execute(_DURABLE)).one()._asdict()
    off = [name for name, value in found.items() if value == "off"]
    if not off:
        return Checked("commits survive a crash")
    if at.settings.is_development:
        return Checked(f"off: {', '.join(off)}; that is for development only")
    return Checked(
        f"off: {', '.join(off)}",
        [
            problem(
                f"{', '.join(off)} is off" if len(off) == 1 else f"{', '.join(off)} are off",
                "What was acknowledged may be lost in a crash; without fsync or full_page_writes, so may the whole "
                "database.",
                "Reset them for the server, the database and the role (\\drds in psql), and reload.",
                "psql " + " ".join(f"-c 'ALTER SYSTEM RESET {name}'" for name in off) + " -c 'SELECT pg_reload_conf()'",
            )
        ],
    )


async def migrations(at: Installation) -> Checked:
    """Whether the tables are those of this release."""
    schema = Schema(at.settings.database_schema)
    async with at.database.engine.connect() as connection:
        await schema.look(connection)
    if schema.complaint is None:
        return Checked(f"the schema {schema.name} is at the newest revision, or a newer one")
    return Checked(
        f"the tables in the schema {schema.name} are {schema.state}",
        [
            problem(
                schema.complaint,
                "Workers and API processes of this release do not run on other tables.",
                "Migrate the database; running processes of the release before keep working meanwhile.",
                "waybill migrate",
            )
        ],
        is_final=True,
    )


async def where_from(at: Installation) -> Checked:
    """Whether the stored transaction ids are those of this cluster."""
    async with at.database.engine.connect() as connection:
        complaint = await origin.complaint(connection) or await origin.complaint_of_reads(connection)
    if complaint is None:
        return Checked("the event log belongs to this cluster")
    return Checked(
        "the database came from another cluster",
        [
            problem(
                complaint,
                "Consumers of the log would skip new events, and positions might be given twice.",
                "Stop the API and the workers, adapt the database, and start them again "
                "(docs/how-to/back-up-and-restore.md).",
                "waybill outbox rebase",
            )
        ],
    )


async def isolation(at: Installation) -> Checked:
    """The isolation level that transactions have by default, with Waybill's settings and without them."""
    statement = text("SHOW transaction_isolation")
    async with at.database.engine.connect() as connection:
        ours: str = (await connection.execute(statement)).scalar_one()
    async with at.plainly() as connection:
        plain: str = (await connection.execute(statement)).scalar_one()
    findings = []
    if ours != _PROPER:
        findings.append(
            problem(
                f"Waybill's own transactions run in {ours}",
                "Claims do not see what was committed after their transaction began, and events are left lying.",
                "Find out what overrides default_transaction_isolation, such as a pooler, and remove it.",
            )
        )
    if plain != _PROPER:
        findings.append(
            warning(
                f"the database's default isolation level is {plain}",
                "Waybill states its own level and is not affected, but scripts and other clients of this database get "
                "serialization errors, and hold their snapshots for longer.",
                "Reset the default, unless you need it: for the database, the role, or in postgresql.conf.",
                f"psql -c 'ALTER DATABASE \"{at.settings.async_url().database}\" RESET default_transaction_isolation'",
            )
        )
    return Checked(f"{ours}; by default {plain}", findings)


async def clocks(at: Installation) -> Checked:
    """How far the clocks of this host and of the workers' hosts are from the database's."""
    async with at.database.engine.connect() as connection:
        measured = await measure(connection)
    seen = {"this host": abs(measured.skew) - measured.precision}
    if await _has_tables(at):
        async with at.work() as work:
            for one in await control.workers(work):
                if one.silent_seconds <= control.SILENT:
                    skew = abs(float(one.report.get("clock_skew") or 0.0))
                    seen[one.host] = max(skew, seen.get(one.host, 0.0))
    limit = at.settings.max_clock_skew
    findings = [
        (problem if skew > limit else warning)(
            f"the clock of {host} is {skew:,.1f} s off the database's",
            f"Processes refuse to start above {limit:g} s (WAYBILL_MAX_CLOCK_SKEW); below that, times in the log of "
            "this host and the expiry of its tokens are off.",
            "Check that NTP runs on that host and on the database's, and correct the clock that is wrong.",
            "timedatectl timesync-status",
        )
        for host, skew in seen.items()
        if skew > WORTH_A_WARNING
    ]
    return Checked(f"at most {max(0.0, *seen.values()):.1f} s apart", findings)


async def connections(at: Installation) -> Checked:
    """Whether the server has enough connections for all pools, and for those that are open now."""
    alive = 0
    if await _has_tables(at):
        async with at.work() as work:
            alive = sum(one.silent_seconds <= control.SILENT for one in await control.workers(work))
    budget, is_pooled = await measure_pool_budget(at.database.engine, at.settings, alive)
    async with at.database.engine.connect() as connection:
        used: int = (await connection.execute(_SERVER)).one().connections
    findings = []
    if not (budget.fits or is_pooled):
        counted = at.settings.worker_processes < alive
        findings.append(
            problem(
                f"the pools may open more connections than the server allows: {budget.describe()}",
                "Under load, connections are refused: requests fail with 503, and workers stop.",
                "Lower WAYBILL_DATABASE_POOL_SIZE or WAYBILL_DATABASE_MAX_OVERFLOW, raise max_connections, or use "
                "PgBouncer (docs/how-to/use-pgbouncer.md)."
                + (f" {alive} workers are alive: set WAYBILL_WORKER_PROCESSES to their number." if counted else ""),
                f"psql -c 'ALTER SYSTEM SET max_connections = {budget.wanted + 20}'  # then restart the server",
            )
        )
    if used > _CROWDED * budget.available:
        findings.append(
            warning(
                f"{used} of {budget.available} connections are in use",
                "When all are taken, new ones are refused.",
                "Find out who holds them.",
                "psql -c 'SELECT application_name, usename, count(*) FROM pg_stat_activity GROUP BY 1, 2'",
            )
        )
    return Checked(f"{used} in use, {budget.wanted} if all pools are full, {budget.available} allowed", findings)


async def replica(at: Installation) -> Checked:
    """Whether the read replica is fit to be read."""
    found = at.database.replica
    if found is None:
        return Checked("none is configured")
    await found.look()
    if found.is_fit:
        return Checked(f"ok, {max(0.0, found.lag):.1f} s behind")
    state = "behind" if found.state == "ok" else found.state
    return Checked(
        state,
        [
            warning(
                f"the read replica cannot be read: {state}",
                "Everything is read from the primary, which has to carry that load.",
                "Check the replica's log and WAYBILL_DATABASE_REPLICA_URL (docs/how-to/use-a-read-replica.md).",
            )
        ],
    )


async def analytics(at: Installation) -> Checked:
    """Whether the analytics database answers and has its tables."""
    if at.analytics is None:
        return Checked("reports are off")
    try:
        async with at.analytics.open() as work:
            await work.check_tables()
    except TablesMissing as error:
        return Checked(
            "its tables are missing or old",
            [
                problem(
                    str(error),
                    "The reports are not counted on; nothing is lost, since the log keeps the events.",
                    "Migrate the analytics database.",
                    "waybill migrate --database analytics",
                )
            ],
        )
    return Checked("it has the tables of this release")


async def _has_tables(at: Installation) -> bool:
    async with at.database.engine.connect() as connection:
        return (await connection.execute(text("SELECT to_regclass('workers') IS NOT NULL"))).scalar_one() is True
