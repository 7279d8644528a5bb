"""Fill a column or a table from a table that is in use, in many short transactions instead of a long one.

One UPDATE of a whole table locks every row until it ends, and leaves as many dead rows behind. In batches by key, each
commit releases its rows, and an interrupted run continues where it stopped.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alembic import context, op
from sqlalchemy import ColumnElement, Connection, Executable, TableClause, Update, select, true, update

BATCH_SIZE = 5000
"""Rows per transaction: a few hundred milliseconds of work."""


def update_in_batches(
    table: TableClause,
    key: ColumnElement[Any],
    values: Mapping[str, Any],
    pending: ColumnElement[bool],
    *,
    skip_locked: bool = False,
) -> int:
    """Set `values` on the rows for which `pending` is true, `BATCH_SIZE` at a time in the order of `key`.

    `key` must be unique and indexed; `pending` must be false for a row once it is updated. With `skip_locked`, rows
    that another transaction has locked are left as they are: a batch that waited for one would keep all others locked.

    Commits the migration's transaction, then each batch, so everything before it in the migration must be safe to
    repeat. Returns the number of rows updated. With `--sql`, which cannot query the database, it prints one UPDATE for
    all rows and returns 0.
    """
    batches = _Batches(table, key, values, skip_locked)
    with op.get_context().autocommit_block():
        if context.is_offline_mode():
            op.execute(batches.update(pending))
            return 0
        return batches.run(op.get_bind(), pending)


@dataclass(frozen=True, slots=True)
class _Batches:
    table: TableClause
    key: ColumnElement[Any]
    values: Mapping[str, Any]
    skip_locked: bool

    def update(self, condition: ColumnElement[bool]) -> Update:
        if self.skip_locked:
            free = select(self.key).select_from(self.table).where(condition).with_for_update(skip_locked=True)
            condition = self.key.in_(free.correlate(None))
        return update(self.table).values(dict(self.values)).where(condition)

    def run(self, connection: Connection, pending: ColumnElement[bool]) -> int:
        updated = 0
        rest = pending
        while True:
            last_key = connection.scalar(
                select(self.key).select_from(self.table).where(rest).order_by(self.key).offset(BATCH_SIZE - 1).limit(1)
            )
            batch = rest if last_key is None else rest & (self.key <= last_key)
            updated += connection.execute(self.update(batch)).rowcount
            if last_key is None:
                return updated
            rest = pending & (self.key > last_key)


def copy_in_batches(
    table: TableClause, key: ColumnElement[Any], copy: Callable[[ColumnElement[bool]], Executable]
) -> None:
    """Run `copy`, a statement for the rows of `table` that match a condition, for `BATCH_SIZE` rows at a time.

    `key` must be unique and indexed. Commits the migration's transaction, then each batch; an interrupted run starts at
    the beginning, so the statement must leave out what was copied before. With `--sql` it prints one for all rows.
    """
    with op.get_context().autocommit_block():
        if context.is_offline_mode():
            op.execute(copy(true()))
            return
        connection = op.get_bind()
        rest: ColumnElement[bool] = true()
        while True:
            last_key = connection.scalar(
                select(key).select_from(table).where(rest).order_by(key).offset(BATCH_SIZE - 1).limit(1)
            )
            connection.execute(copy(rest if last_key is None else rest & (key <= last_key)))
            if last_key is None:
                return
            rest = key > last_key
