"""groups of dead letters: indexes, and validate what the step before has added

Revision ID: 0043tknd
Revises: 0042prwm
Create Date: 2026-11-28 12:02:11.480219+00:00
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0043tknd"
down_revision: str | Sequence[str] | None = "0042prwm"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

REASONS = (
    "handler_error",
    "time_limit",
    "unreadable",
    "unknown_version",
    "worker_died",
    "bisected",
    "locked",
    "buried",
)

INDEXES = (
    ("ix_dead_letters_fingerprint_died_at", ["fingerprint", "died_at"]),
    ("ix_dead_letters_reason_position", ["reason", "position"]),
)


def upgrade() -> None:
    # It blocks no writers, and can be run again if it is interrupted.
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Named with its schema: if a tenant has no such index yet, the search path would find another schema's.
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE dead_letters VALIDATE CONSTRAINT ck_dead_letters_reason")
        for name, columns in INDEXES:
            # An interrupted attempt leaves an invalid index.
            op.drop_index(name, "dead_letters", schema=schema, if_exists=True, postgresql_concurrently=True)
            op.create_index(name, "dead_letters", columns, postgresql_concurrently=True)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    # As it was before: not checked for the rows that there were.
    op.execute("ALTER TABLE dead_letters DROP CONSTRAINT ck_dead_letters_reason")
    op.execute(
        "ALTER TABLE dead_letters ADD CONSTRAINT ck_dead_letters_reason"
        f" CHECK (reason = ANY ('{{{','.join(REASONS)}}}'::text[])) NOT VALID"
    )
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        for name, _ in INDEXES:
            op.drop_index(name, "dead_letters", schema=schema, if_exists=True, postgresql_concurrently=True)
