"""four eyes: what operators do alone, top-ups and reversals that wait for approval, how long a role is held

Revision ID: 0030fpkb
Revises: 0029qtbr
Create Date: 2026-11-28 04:26:27.218018+00:00

The release before counts nothing that its operators do alone. It can reject what waits for approval, but cannot apply a
top-up or a reversal: it takes each for an adjustment, and a trigger refuses that.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0030fpkb"
down_revision: str | Sequence[str] | None = "0029qtbr"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


DECIDED = """
    OLD.state = 'pending' AND NEW.state <> 'pending'
    AND (OLD.id, OLD.account_id, OLD.amount, OLD.reason, OLD.needs_approval, OLD.requested_by, OLD.created_at{more_old})
    IS NOT DISTINCT FROM
        (NEW.id, NEW.account_id, NEW.amount, NEW.reason, NEW.needs_approval, NEW.requested_by, NEW.created_at{more_new})
"""
NOW = DECIDED.format(more_old=", OLD.operation, OLD.reverses", more_new=", NEW.operation, NEW.reverses")
BEFORE = DECIDED.format(more_old="", more_new="")

# A change by hand may come with another schema's search path.
APPLIED = """
    CREATE OR REPLACE FUNCTION check_applied() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        as_asked boolean;
    BEGIN
        EXECUTE format('SELECT EXISTS (SELECT FROM %I.transfers WHERE id = $1 AND kind = $2'
            ' AND reverses IS NOT DISTINCT FROM $3)', TG_TABLE_SCHEMA)
            INTO as_asked USING NEW.transfer_id, NEW.operation, NEW.reverses;
        IF NOT as_asked THEN
            RAISE EXCEPTION 'adjustment % is applied by a transfer that does something else', NEW.id
                USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
        END IF;
        RETURN NEW;
    END
    $$
"""

# Also for changes by the release before, and by hand. Users who come back have to wait again before they may approve.
ROLE_SINCE = """
    CREATE OR REPLACE FUNCTION set_role_since() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.role_since := now();
        RETURN NEW;
    END
    $$
"""
TRIGGERS = (
    """
    CREATE OR REPLACE TRIGGER unapproved_movements_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON unapproved_movements
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
    """,
    f"""
    CREATE OR REPLACE TRIGGER adjustments_decide_once BEFORE UPDATE ON adjustments FOR EACH ROW
    WHEN (NOT ({NOW})) EXECUTE FUNCTION refuse_change()
    """,
    """
    CREATE OR REPLACE TRIGGER adjustments_applied BEFORE UPDATE ON adjustments FOR EACH ROW
    WHEN (NEW.state = 'applied' AND OLD.state <> 'applied') EXECUTE FUNCTION check_applied()
    """,
    """
    CREATE OR REPLACE TRIGGER users_role_since BEFORE UPDATE ON users FOR EACH ROW
    WHEN (OLD.role <> NEW.role OR NEW.is_active AND NOT OLD.is_active
        OR OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS NULL)
    EXECUTE FUNCTION set_role_since()
    """,
)


def upgrade() -> None:
    # While a table lock waits, everything behind it waits, too: give up, and let the release step try again.
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "unapproved_movements",
        sa.Column("transfer_id", sa.Uuid(), nullable=False),
        sa.Column("operator_id", sa.BigInteger(), nullable=False),
        sa.Column("debit_account_id", sa.BigInteger(), nullable=False),
        sa.Column("credit_account_id", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.Numeric(precision=18, scale=2), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("amount > 0", name=op.f("ck_unapproved_movements_amount")),
        sa.ForeignKeyConstraint(
            ["credit_account_id"], ["accounts.id"], name=op.f("fk_unapproved_movements_credit_account_id_accounts")
        ),
        sa.ForeignKeyConstraint(
            ["debit_account_id"], ["accounts.id"], name=op.f("fk_unapproved_movements_debit_account_id_accounts")
        ),
        sa.ForeignKeyConstraint(["operator_id"], ["users.id"], name=op.f("fk_unapproved_movements_operator_id_users")),
        sa.ForeignKeyConstraint(
            ["transfer_id"], ["transfers.id"], name=op.f("fk_unapproved_movements_transfer_id_transfers")
        ),
        sa.PrimaryKeyConstraint("transfer_id", name=op.f("pk_unapproved_movements")),
        if_not_exists=True,
    )
    for column in ("credit_account_id", "debit_account_id", "operator_id"):
        op.create_index(
            f"ix_unapproved_movements_{column}_created_at",
            "unapproved_movements",
            [column, "created_at"],
            unique=False,
            if_not_exists=True,
        )
    op.add_column(
        "adjustments",
        sa.Column("operation", sa.String(32), server_default="adjustment", nullable=False),
        if_not_exists=True,
    )
    op.add_column("adjustments", sa.Column("reverses", sa.Uuid(), nullable=True), if_not_exists=True)
    # Of those who already have a role, it is not known since when. From the migration on is the safe choice: someone
    # who was promoted shortly before it would otherwise be trusted. The time is the same for all rows, so that they are
    # not rewritten.
    op.add_column(
        "users",
        sa.Column("role_since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        if_not_exists=True,
    )
    for statement in (APPLIED, ROLE_SINCE, *TRIGGERS):
        op.execute(statement)
    add_checks()


def add_checks() -> None:
    """Lock the table only briefly; rows are validated without blocking writers. Can be run again if interrupted."""
    checks = {
        "operation": "operation = ANY ('{adjustment,top_up,reversal}'::text[])",
        "reverses": "(operation = 'reversal') = (reverses IS NOT NULL)",
    }
    for name, condition in checks.items():
        op.drop_constraint(op.f(f"ck_adjustments_{name}"), "adjustments", if_exists=True)
        op.create_check_constraint(op.f(f"ck_adjustments_{name}"), "adjustments", condition, postgresql_not_valid=True)
    reverses = op.f("fk_adjustments_reverses_transfers")
    op.drop_constraint(reverses, "adjustments", type_="foreignkey", if_exists=True)
    op.create_foreign_key(reverses, "adjustments", "transfers", ["reverses"], ["id"], postgresql_not_valid=True)
    with op.get_context().autocommit_block():
        for name in ("ck_adjustments_operation", "ck_adjustments_reverses", "fk_adjustments_reverses_transfers"):
            op.execute(f"ALTER TABLE adjustments VALIDATE CONSTRAINT {name}")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DROP TRIGGER IF EXISTS users_role_since ON users")
    op.execute("DROP FUNCTION IF EXISTS set_role_since()")
    op.drop_column("users", "role_since")
    op.execute("DROP TRIGGER IF EXISTS adjustments_applied ON adjustments")
    op.execute("DROP FUNCTION IF EXISTS check_applied()")
    op.execute(f"""
        CREATE OR REPLACE TRIGGER adjustments_decide_once BEFORE UPDATE ON adjustments FOR EACH ROW
        WHEN (NOT ({BEFORE})) EXECUTE FUNCTION refuse_change()
    """)
    op.drop_column("adjustments", "reverses")
    op.drop_column("adjustments", "operation")
    op.drop_table("unapproved_movements")
