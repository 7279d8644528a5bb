"""validate what the step before has added, and index it

Revision ID: 0034pkvn
Revises: 0033kmdp
Create Date: 2026-11-28 05:05:00.000000+00:00
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0034pkvn"
down_revision: str | Sequence[str] | None = "0033kmdp"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

CONSTRAINTS = (
    ("mails", "fk_mails_unverified_id_unverified_emails"),
    ("mails", "ck_mails_addressed"),
    ("mails", "ck_mails_kind"),
    ("one_time_tokens", "fk_one_time_tokens_unverified_id_unverified_emails"),
    ("one_time_tokens", "ck_one_time_tokens_about"),
    ("one_time_tokens", "ck_one_time_tokens_purpose"),
)


def upgrade() -> None:
    # It blocks no writers, and can be run again if it is interrupted.
    op.execute("SET LOCAL lock_timeout = '5s'")
    # Named with its schema: if a tenant has no such index yet, the search path would find another schema's.
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        for table, name in CONSTRAINTS:
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")
        for table in ("mails", "one_time_tokens"):
            index = f"ix_{table}_unverified_id"
            # An interrupted build leaves an invalid index.
            op.drop_index(index, table, schema=schema, if_exists=True, postgresql_concurrently=True)
            op.create_index(index, table, ["unverified_id"], postgresql_concurrently=True)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    schema = op.get_context().version_table_schema
    with op.get_context().autocommit_block():
        for table in ("mails", "one_time_tokens"):
            op.drop_index(
                f"ix_{table}_unverified_id", table, schema=schema, if_exists=True, postgresql_concurrently=True
            )
    # As they were before: not checked for the rows that there were.
    for table, name in CONSTRAINTS:
        op.execute(
            f"""
            DO $$
            DECLARE
                definition text := pg_get_constraintdef(oid) FROM pg_constraint
                    WHERE conrelid = '{table}'::regclass AND conname = '{name}';
            BEGIN
                ALTER TABLE {table} DROP CONSTRAINT {name};
                EXECUTE 'ALTER TABLE {table} ADD CONSTRAINT {name} ' || definition || ' NOT VALID';
            END
            $$
            """
        )
