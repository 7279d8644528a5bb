"""audit log: who did what, chained by hashes

Revision ID: 0029qtbr
Revises: 0028bczj
Create Date: 2026-11-28 04:42:47.113103+00:00

Append-only: a row may only be sealed, once, which gives it a place in the chain.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0029qtbr"
down_revision: str | Sequence[str] | None = "0028bczj"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

SEALED = """
    OLD.position IS NULL AND NEW.position IS NOT NULL
    AND (OLD.id, OLD.at, OLD.actor, OLD.user_id, OLD.action, OLD.object, OLD.reason, OLD.details, OLD.number,
         OLD.request_id, OLD.address)
    IS NOT DISTINCT FROM
        (NEW.id, NEW.at, NEW.actor, NEW.user_id, NEW.action, NEW.object, NEW.reason, NEW.details, NEW.number,
         NEW.request_id, NEW.address)
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_table(
        "audit_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("actor", sa.String(length=120), nullable=True),
        sa.Column("user_id", sa.BigInteger(), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("object", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.String(length=500), server_default="", nullable=False),
        sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("number", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=True),
        sa.Column("address", sa.String(length=255), nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=True),
        sa.Column("hash", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("(position IS NULL) = (hash IS NULL)", name=op.f("ck_audit_log_sealed")),
        sa.CheckConstraint("length(action) > 0", name=op.f("ck_audit_log_action")),
        sa.CheckConstraint("number > 0", name=op.f("ck_audit_log_number")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index("ix_audit_log_action_id", "audit_log", ["action", "id"], unique=False)
    op.create_index("ix_audit_log_actor_id", "audit_log", ["actor", "id"], unique=False)
    op.create_index("ix_audit_log_at_id", "audit_log", ["at", "id"], unique=False)
    op.create_index("ix_audit_log_object_id", "audit_log", ["object", "id"], unique=False)
    op.create_index(
        "ix_audit_log_unsealed", "audit_log", ["id"], unique=False, postgresql_where=sa.text("position IS NULL")
    )
    op.create_index("ix_audit_log_user_id_id", "audit_log", ["user_id", "id"], unique=False)
    op.create_index(
        "uq_audit_log_position",
        "audit_log",
        ["position"],
        unique=True,
        postgresql_where=sa.text("position IS NOT NULL"),
    )
    op.create_table(
        "audit_log_head",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_log_head_single")),
        sa.CheckConstraint("length(hash) = 32", name=op.f("ck_audit_log_head_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log_head")),
    )
    op.execute("INSERT INTO audit_log_head (id, position, hash) VALUES (1, 0, decode(repeat('00', 32), 'hex'))")
    op.execute(
        "CREATE TRIGGER audit_log_seal_once BEFORE UPDATE ON audit_log FOR EACH ROW"
        f" WHEN (NOT ({SEALED})) EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER audit_log_keep BEFORE DELETE OR TRUNCATE ON audit_log"
        " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER audit_log_head_forward BEFORE UPDATE ON audit_log_head FOR EACH ROW"
        " WHEN (NEW.position <= OLD.position) EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER audit_log_head_keep BEFORE DELETE OR TRUNCATE ON audit_log_head"
        " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("audit_log_head")
    op.drop_table("audit_log")
