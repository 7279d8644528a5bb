"""What the database roles may do: the tables' privileges, and the SQL that grants them.

The *owner* migrates, and owns every table. The *application's* role has what the API and the workers need: it cannot
change the schema, switch triggers off, or change what is append-only. The *reader* sees the tables without their
secrets. `waybill migrate` grants all of it after the migrations, so a new table needs a line here.

A process of the release before runs with these privileges, too: take none away that it still uses.
"""

import json
from dataclasses import dataclass

ALL: tuple[str, ...] = ("*",)
NONE: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Privileges:
    """What the application may do with a table besides SELECT, and what the reader may not see."""

    insert: bool = True
    update: tuple[str, ...] = ALL
    """The columns that it may change; `ALL` or `NONE`."""
    delete: bool = False
    secret: tuple[str, ...] = NONE
    """The columns that the reader cannot select: `ALL` of them, or those from which someone could sign in."""


APPEND_ONLY = Privileges(update=NONE)
KEPT = Privileges()
"""Rows change, but are never deleted."""
PASSING = Privileges(delete=True)
"""Rows that are deleted when they have served."""
LOOKED_AT = Privileges(insert=False, update=NONE)
"""Only migrations and their owner write it."""

TABLES: dict[str, Privileges] = {
    "accounts": Privileges(update=("posted", "held", "version", "closed_at")),
    "adjustments": Privileges(update=("state", "decided_by", "transfer_id", "decided_at")),
    "alembic_version": LOOKED_AT,
    "api_keys": Privileges(delete=True, secret=("hash",)),
    "audit_log": Privileges(update=("position", "hash")),
    "audit_log_head": Privileges(insert=False),
    "bulk_actions": KEPT,
    "canaries": PASSING,
    "categories": KEPT,
    "dead_letters": PASSING,
    "entries": APPEND_ONLY,
    "events": APPEND_ONLY,
    "failed_attempts": PASSING,
    "history": PASSING,
    "idempotency_keys": Privileges(delete=True, secret=("fingerprint", "headers")),
    "inventory": KEPT,
    "jobs": KEPT,
    "ledger_audits": APPEND_ONLY,
    "log_consumers": PASSING,
    "log_origin": LOOKED_AT,
    "log_sinks": KEPT,
    "mails": PASSING,
    "one_time_tokens": Privileges(delete=True, secret=("hash",)),
    "order_days": PASSING,
    "order_items": Privileges(update=("returned",)),
    "order_sellers": APPEND_ONLY,
    "order_transitions": APPEND_ONLY,
    "orders": KEPT,
    "outbox": PASSING,
    "outbox_actions": APPEND_ONLY,
    "outbox_errors": APPEND_ONLY,
    "outbox_types": KEPT,
    "products": KEPT,
    "recovery_codes": Privileges(update=NONE, delete=True, secret=("hash",)),
    "refresh_tokens": Privileges(update=("used_at",), secret=("hash", "follows")),
    "refund_lines": APPEND_ONLY,
    "refunds": APPEND_ONLY,
    "role_requests": KEPT,
    "sessions": PASSING,
    "stock_movements": APPEND_ONLY,
    "sweep_failures": PASSING,
    "totp_secrets": Privileges(delete=True, secret=("sealed",)),
    "transfers": Privileges(update=("state", "posted_amount", "resolved_at")),
    "unapproved_movements": APPEND_ONLY,
    "unverified_emails": Privileges(delete=True, secret=("hashed_password",)),
    "users": Privileges(secret=("hashed_password",)),
    "workers": PASSING,
}
"""Every table of the primary. A partition of the event log can be read by those who can read the log."""

ANALYTICS: dict[str, Privileges] = {
    "alembic_version": LOOKED_AT,
    "log_places": KEPT,
    "report_days": PASSING,
    "report_waits": PASSING,
}
"""Every table of the analytics database."""

FUNCTIONS = (
    "lock_event_log()",
    "add_event_month(integer, integer)",
    "lock_event_month(text)",
    "drop_event_month(text)",
)
"""Functions that the application may call with the owner's rights. They create and drop months of the event log."""

# A table or column that a later step adds, or a newer release has dropped, is left out.
_GRANT = """
DO $grants$
DECLARE
    given record;
    columns text;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', {schema}, {role});
    FOR given IN
        SELECT class.oid::regclass AS name FROM pg_class AS class
        WHERE class.relnamespace = {schema}::regnamespace AND class.relkind IN ('r', 'p')
        AND (
            class.relname IN (SELECT wanted.name FROM jsonb_to_recordset({wanted}) AS wanted(name text))
            OR class.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass({events}))
        )
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM %I', given.name, {role});
    END LOOP;
    FOR given IN
        SELECT class.oid::regclass AS name FROM pg_class AS class
        WHERE class.relnamespace = {schema}::regnamespace AND class.relkind = 'S'
        AND pg_has_role(class.relowner, 'USAGE')
    LOOP
        EXECUTE format('REVOKE ALL ON SEQUENCE %s FROM %I', given.name, {role});
        EXECUTE format('GRANT {of_sequences} ON SEQUENCE %s TO %I', given.name, {role});
    END LOOP;
    FOR given IN
        SELECT wanted.privilege, wanted.columns, wanted.without, class.oid::regclass AS name, class.oid AS id
        FROM jsonb_to_recordset({wanted}) AS wanted(name text, privilege text, columns jsonb, without jsonb)
        JOIN pg_class AS class ON class.relname = wanted.name AND class.relnamespace = {schema}::regnamespace
        UNION ALL
        SELECT 'SELECT', '["*"]', '[]', inhrelid::regclass, inhrelid
        FROM pg_inherits WHERE inhparent = to_regclass({events})
    LOOP
        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO columns FROM pg_attribute
        WHERE attrelid = given.id AND attnum > 0 AND NOT attisdropped
        AND (given.columns ? '*' OR given.columns ? attname) AND NOT given.without ? attname;
        IF given.columns ? '*' AND given.without = '[]' THEN
            EXECUTE format('GRANT %s ON %s TO %I', given.privilege, given.name, {role});
        ELSIF columns IS NOT NULL THEN
            EXECUTE format('GRANT %s (%s) ON %s TO %I', given.privilege, columns, given.name, {role});
        END IF;
    END LOOP;
    FOR given IN
        SELECT procedure.oid::regprocedure AS name FROM unnest(ARRAY[{functions}]::text[]) AS wanted(name)
        JOIN pg_proc AS procedure ON procedure.oid = to_regprocedure(quote_ident({schema}) || '.' || wanted.name)
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', given.name, {role});
    END LOOP;
END $grants$
"""


def grant_to_application(role: str, schema: str, tables: dict[str, Privileges]) -> str:
    """The statement that gives the role what the API and the workers need, and nothing else in this schema."""
    return _grant(role, schema, wanted_by_application(tables), "USAGE, SELECT", FUNCTIONS)


def wanted_by_application(tables: dict[str, Privileges]) -> list[object]:
    """What the application needs: a `name` of a table, a `privilege`, and the `columns`; one entry for each."""
    wanted = [_wanted(name, "SELECT") for name in tables]
    for name, of_table in tables.items():
        wanted += [_wanted(name, "INSERT")] * of_table.insert + [_wanted(name, "DELETE")] * of_table.delete
        if of_table.update:
            wanted.append(_wanted(name, "UPDATE", of_table.update))
    return wanted


def grant_to_reader(role: str, schema: str, tables: dict[str, Privileges]) -> str:
    """The statement that lets the role read everything in this schema but the secrets."""
    wanted = [
        _wanted(name, "SELECT", without=of_table.secret) for name, of_table in tables.items() if of_table.secret != ALL
    ]
    return _grant(role, schema, wanted, "SELECT", ())


def _wanted(name: str, privilege: str, columns: tuple[str, ...] = ALL, without: tuple[str, ...] = NONE) -> object:
    return {"name": name, "privilege": privilege, "columns": columns, "without": without}


def _grant(role: str, schema: str, wanted: list[object], of_sequences: str, functions: tuple[str, ...]) -> str:
    return _GRANT.format(
        role=_quoted(role),
        schema=_quoted(schema),
        events=_quoted(f'"{schema}".events'),
        wanted=_quoted(json.dumps(wanted)),
        of_sequences=of_sequences,
        functions=", ".join(map(_quoted, functions)),
    )


def _quoted(value: str) -> str:
    """The value as an SQL literal. In a DO block, `$grants$` would end it, and no name contains that."""
    assert "$" not in value, "a name with a dollar sign would need other quotes"
    return "'" + value.replace("'", "''") + "'"
