"""A database's schema, read from PostgreSQL's catalogue, for comparing one database with another."""

from dataclasses import dataclass

import psycopg
from alembic import command
from psycopg.rows import TupleRow

from migrations.config import alembic_config

_OWN_TABLES = """
    SELECT oid, relname FROM pg_class
    WHERE relnamespace = %(schema)s::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
    AND relname <> 'alembic_version'
"""

_COLUMNS = f"""
    SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, pg_get_expr(adbin, adrelid)
    FROM ({_OWN_TABLES}) AS own JOIN pg_attribute ON attrelid = own.oid
    LEFT JOIN pg_attrdef ON adrelid = own.oid AND adnum = attnum
    WHERE attnum > 0 AND NOT attisdropped
"""

_CONSTRAINTS = f"""
    SELECT relname, conname, pg_get_constraintdef(pg_constraint.oid)
    FROM ({_OWN_TABLES}) AS own JOIN pg_constraint ON conrelid = own.oid
"""

_INDEXES = f"""
    SELECT relname, pg_get_indexdef(indexrelid), indisvalid
    FROM ({_OWN_TABLES}) AS own JOIN pg_index ON indrelid = own.oid
"""

_TRIGGERS = f"""
    SELECT relname, pg_get_triggerdef(pg_trigger.oid), prosrc
    FROM ({_OWN_TABLES}) AS own JOIN pg_trigger ON tgrelid = own.oid JOIN pg_proc ON pg_proc.oid = tgfoid
    WHERE NOT tgisinternal
"""

_PARTITION_KEYS = f"SELECT relname, pg_get_partkeydef(oid) FROM ({_OWN_TABLES}) AS own"


@dataclass(frozen=True)
class Schema:
    """Tables without their partitions, and without Alembic's; definitions as PostgreSQL prints them."""

    columns: frozenset[TupleRow]
    constraints: frozenset[TupleRow]
    indexes: frozenset[TupleRow]
    triggers: frozenset[TupleRow]
    partition_keys: frozenset[TupleRow]

    @property
    def tables(self) -> set[str]:
        return {row[0] for row in self.columns}


def read_schema(url: str, schema: str = "public") -> Schema:
    """The schema of a database as it is now."""
    with psycopg.connect(url) as connection:
        # Names are printed without their schema if it comes first in the search path.
        connection.execute("SELECT set_config('search_path', %s, false)", [f"{schema}, public, waybill_extensions"])

        def rows(query: str) -> frozenset[TupleRow]:
            found = connection.execute(query.encode(), {"schema": schema}).fetchall()
            return frozenset(
                tuple(value.replace(f"{schema}.", "") if isinstance(value, str) else value for value in row)
                for row in found
            )

        return Schema(rows(_COLUMNS), rows(_CONSTRAINTS), rows(_INDEXES), rows(_TRIGGERS), rows(_PARTITION_KEYS))


def upgrade(url: str, revision: str = "head", schema: str = "public") -> None:
    command.upgrade(alembic_config(url, schema), revision)


def downgrade(url: str, revision: str, schema: str = "public") -> None:
    command.downgrade(alembic_config(url, schema), revision)


def revision_of(url: str, schema: str = "public") -> list[str]:
    """The content of the schema's version table."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(f"SELECT version_num FROM {schema}.alembic_version".encode()).fetchall()
    return [row[0] for row in rows]
