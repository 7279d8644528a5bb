"""Fill a column of a table that is in use, in many short transactions instead of a long one.

One UPDATE of a whole table locks every row until it ends, and leaves as many dead rows behind. In batches by key, each
commit releases its rows, and an interrupted run continues where it stopped.
"""

from collections.abc import Mapping
from typing import Any

from alembic import context, op
from sqlalchemy import ColumnElement, Connection, TableClause, select, update

BATCH_SIZE = 5000
"""Rows per transaction: a few hundred milliseconds of work."""


def update_in_batches(
    table: TableClause, key: ColumnElement[Any], values: Mapping[str, Any], pending: ColumnElement[bool]
) -> int:
    """Set `values` on the rows for which `pending` is true, `BATCH_SIZE` at a time in the order of `key`.

    `key` must be unique and indexed; `pending` must be false for a row once it is updated. Commits the migration's
    transaction, then each batch, so everything before it in the migration must be safe to repeat. Returns the number of
    rows updated. With `--sql`, which cannot query the database, it prints one UPDATE for all rows and returns 0.
    """
    everything = update(table).values(dict(values)).where(pending)
    with op.get_context().autocommit_block():
        if context.is_offline_mode():
            op.execute(everything)
            return 0
        return _in_batches(op.get_bind(), table, key, everything, pending)


def _in_batches(
    connection: Connection, table: TableClause, key: ColumnElement[Any], everything: Any, pending: ColumnElement[bool]
) -> int:
    updated = 0
    rest = pending
    while True:
        last_key = connection.scalar(
            select(key).select_from(table).where(rest).order_by(key).offset(BATCH_SIZE - 1).limit(1)
        )
        batch = everything.where(rest) if last_key is None else everything.where(rest, key <= last_key)
        updated += connection.execute(batch).rowcount
        if last_key is None:
            return updated
        rest = pending & (key > last_key)
