"""Checks of the application's database role: that it may do what it needs, and no more."""

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Row, text

from services.cli.doctor.findings import Checked, Finding, Severity, problem, warning
from services.cli.doctor.installation import Installation
from services.privileges import FUNCTIONS, TABLES, wanted_by_application
from services.startup import may_become_superuser, role_of

_MIGRATE = "waybill migrate"
_LISTED = 5
"""The most privileges that one finding lists."""

_MISSING = text("""
    WITH wanted AS (
        SELECT wanted.name, wanted.privilege, wanted.columns, class.oid AS id
        FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS wanted(name text, privilege text, columns jsonb)
        JOIN pg_class AS class ON class.relname = wanted.name AND class.relnamespace = to_regnamespace(:schema)
    )
    SELECT privilege || ' on ' || name AS what FROM wanted WHERE NOT CASE
        WHEN columns ? '*' THEN has_table_privilege(id, privilege)
        ELSE (
            SELECT bool_and(has_column_privilege(id, attnum, privilege)) FROM pg_attribute
            WHERE attrelid = id AND attnum > 0 AND NOT attisdropped AND columns ? attname
        )
    END
    UNION ALL
    SELECT 'USAGE on ' || relname FROM pg_class
    WHERE relnamespace = to_regnamespace(:schema)
    AND CASE WHEN relkind = 'S' THEN NOT has_sequence_privilege(oid, 'USAGE') ELSE false END
    AND EXISTS (SELECT FROM pg_class AS version WHERE version.relname = 'alembic_version'
        AND version.relnamespace = pg_class.relnamespace AND version.relowner = pg_class.relowner)
    UNION ALL
    SELECT 'EXECUTE on ' || wanted.name FROM unnest(CAST(:functions AS text[])) AS wanted(name)
    WHERE NOT has_function_privilege(to_regprocedure(quote_ident(:schema) || '.' || wanted.name), 'EXECUTE')
    ORDER BY what
""")

_EXCESS = text("""
    WITH wanted AS (
        SELECT * FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS wanted(name text, privilege text, columns jsonb)
    ), had AS (
        SELECT class.relname AS name, privilege, class.oid AS id FROM pg_class AS class
        CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) AS privilege
        WHERE class.relnamespace = to_regnamespace(:schema) AND class.relname IN (SELECT name FROM wanted)
    )
    SELECT had.privilege || ' on ' || had.name AS what FROM had LEFT JOIN wanted USING (name, privilege)
    WHERE CASE
        WHEN wanted.name IS NULL THEN has_table_privilege(had.id, had.privilege)
            OR had.privilege IN ('INSERT', 'UPDATE') AND has_any_column_privilege(had.id, had.privilege)
        WHEN wanted.columns ? '*' THEN false
        ELSE EXISTS (
            SELECT FROM pg_attribute WHERE attrelid = had.id AND attnum > 0 AND NOT attisdropped
            AND NOT wanted.columns ? attname AND has_column_privilege(had.id, attnum, had.privilege)
        )
    END
    ORDER BY what
""")


async def role(at: Installation) -> Checked:
    """Whether the role is an ordinary one that does not own the tables."""
    found = await role_of(at.database.engine, at.settings.database_schema)
    async with at.database.engine.connect() as connection:
        name, may_become = await may_become_superuser(connection)
    if found.is_superuser or may_become:
        what = "is a superuser" if found.is_superuser else "may become a superuser"
        return Checked(f"{name} {what}", [_too_powerful(f"the database role {name} {what}", Severity.problem)])
    if found.owns_tables:
        return Checked(
            f"{name} owns the tables", [_too_powerful(f"the database role {name} owns the tables", Severity.warning)]
        )
    return Checked(f"{name}, an ordinary role")


async def grants(at: Installation) -> Checked:
    """Whether the role has the privileges that it needs in this schema, and no others."""
    schema = at.settings.database_schema
    given: dict[str, Any] = {"schema": schema, "wanted": json.dumps(wanted_by_application(TABLES))}
    async with at.database.engine.connect() as connection:
        missing = (await connection.execute(_MISSING, given | {"functions": list(FUNCTIONS)})).all()
        excess = (await connection.execute(_EXCESS, given)).all()
    is_ordinary = (await role_of(at.database.engine, schema)).excess is None
    findings: list[Finding] = []
    if missing:
        findings.append(
            problem(
                f"the application's role lacks privileges: {_some(missing)}",
                "Requests and batches of events that need them fail.",
                "Migrate with WAYBILL_MIGRATION_DATABASE_URL set: it grants them, even if there is nothing to migrate.",
                _MIGRATE,
            )
        )
    if excess and is_ordinary:
        findings.append(
            warning(
                f"the application's role has privileges that it does not need: {_some(excess)}",
                "With its password, what is append-only could be changed.",
                "Migrate with WAYBILL_MIGRATION_DATABASE_URL set: it revokes them.",
                _MIGRATE,
            )
        )
    return Checked(f"{len(missing)} missing, {len(excess) if is_ordinary else 0} too many", findings)


def _too_powerful(found: str, severity: Severity) -> Finding:
    return Finding(
        severity,
        found,
        "With its password, what is append-only can be changed, triggers switched off, and more.",
        "Run the API and the workers with a role of their own (docs/how-to/database-roles.md); then correct "
        "WAYBILL_DATABASE_URL.",
        "waybill database-roles && waybill migrate",
    )


def _some(rows: Iterable[Row[Any]]) -> str:
    names = [row.what for row in rows]
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
