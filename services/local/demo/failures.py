"""A cause in the database that makes some events fail, as a bug or a wrong constraint would: for development only.

A trigger refuses to confirm the orders whose reference begins with `demo-fails-`. So it is the real handler that fails,
with a real error of the database: the event is retried, becomes a dead letter, and succeeds when it is replayed after
the cause has been removed. No code of the service knows about it, and the application's role cannot create it.
"""

import psycopg
from psycopg import sql

from services.cli.console import CommandError
from services.cli.facts import Facts
from services.settings import Environment

REFERENCE = "demo-fails-"
KINDS = ("carrier", "division", "weight")
"""What follows `REFERENCE`: each fails with an error of its own."""

_NAME = sql.Identifier("waybill_demo_failure")

_FUNCTION = """
CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    CASE split_part(NEW.reference, '-', 3)
        WHEN 'division' THEN PERFORM 1 / (NEW.version - NEW.version);
        WHEN 'weight' THEN
            RAISE check_violation USING MESSAGE = 'new row violates check constraint "parcel_weight" of the demo';
        ELSE RAISE 'the carrier of the demo does not answer';
    END CASE;
    RETURN NEW;
END $$
"""

_TRIGGER = """
CREATE OR REPLACE TRIGGER {name} BEFORE UPDATE ON orders FOR EACH ROW
WHEN (NEW.status = 'confirmed' AND NEW.reference LIKE 'demo-fails-%') EXECUTE FUNCTION {name}()
"""


def plant(facts: Facts) -> None:
    """Create the cause, unless it is there already. Raises `CommandError` outside development."""
    _run(facts, [_FUNCTION, _TRIGGER])


def remove(facts: Facts) -> None:
    """Remove the cause, if it is there. Raises `CommandError` outside development."""
    _run(facts, ["DROP TRIGGER IF EXISTS {name} ON orders", "DROP FUNCTION IF EXISTS {name}()"])


def _run(facts: Facts, statements: list[str]) -> None:
    if facts.environment != Environment.development.value:
        raise CommandError(f"this `waybill up` runs in {facts.environment}: failures are made in development only")
    address = facts.migration_database_url or facts.database_url
    try:
        with psycopg.connect(address) as connection:
            connection.execute("SET LOCAL lock_timeout = '5s'")
            connection.execute(
                sql.SQL("SET LOCAL search_path = {}, pg_catalog").format(sql.Identifier(facts.database_schema))
            )
            for statement in statements:
                connection.execute(sql.SQL(statement).format(name=_NAME))
    except psycopg.Error as error:
        raise CommandError(f"cannot change the cause of the failures: {' '.join(str(error).split())}") from error
