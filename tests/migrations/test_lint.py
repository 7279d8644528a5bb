"""The lint of migrations: what it finds in planted ones, and what a migration may do if it says why."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

REVISIONS: dict[str, str] = tomllib.loads((PROJECT / ".ci" / "release_before.toml").read_text())["revisions"]
RELEASED = REVISIONS["alembic"]
LIMIT = "op.execute(\"SET LOCAL lock_timeout = '5s'\")"

STEP = '''"""planted

Revision ID: {id}
Revises: {parent}
"""

import sqlalchemy as sa
from alembic import op

from migrations.batches import update_in_batches

{comment}
revision: str = "{id}"
down_revision: str | None = "{parent}"

orders = sa.table("orders", sa.column("id", sa.Uuid()), sa.column("reference", sa.String()))


def upgrade() -> None:
    {upgrade}


def downgrade() -> None:
    {downgrade}
'''

BAD = {
    "adding-required-field": f"{LIMIT}; op.add_column('orders', sa.Column('gift', sa.Boolean(), nullable=False))",
    "adding-not-nullable-field": f"{LIMIT}; op.alter_column('orders', 'reference', nullable=False)",
    "changing-column-type": f"{LIMIT}; op.alter_column('orders', 'item_count', type_=sa.BigInteger())",
    "adding-field-with-default": f"{LIMIT}; op.execute('ALTER TABLE orders ADD at date DEFAULT clock_timestamp()')",
    "require-concurrent-index-creation": f"{LIMIT}; op.create_index('ix_orders_total', 'orders', ['total'])",
    "require-concurrent-index-deletion": f"{LIMIT}; op.drop_index('ix_orders_buyer_id_id', 'orders')",
    "constraint-missing-not-valid": f"{LIMIT}; op.create_check_constraint('ck_orders_x', 'orders', 'total > 1')",
    "adding-foreign-key-constraint": f"{LIMIT}; op.create_foreign_key('fk', 'orders', 'users', ['item_count'], ['id'])",
    "disallowed-unique-constraint": f"{LIMIT}; op.create_unique_constraint('uq_x', 'orders', ['reference'])",
    "ban-drop-column": f"{LIMIT}; op.drop_column('orders', 'reference')",
    "ban-drop-table": f"{LIMIT}; op.drop_table('canaries')",
    "renaming-column": f"{LIMIT}; op.alter_column('orders', 'reference', new_column_name='ref')",
    "renaming-table": f"{LIMIT}; op.rename_table('canaries', 'birds')",
    "missing-lock-timeout": "op.add_column('orders', sa.Column('gift', sa.Boolean()))",
    "rows-in-one-transaction": f"{LIMIT}; op.execute(\"UPDATE orders SET reference = 'x'\")",
    "index-not-rebuilt": f"{LIMIT}\n    with op.get_context().autocommit_block():\n"
    "        op.create_index('ix_orders_total', 'orders', ['total'], postgresql_concurrently=True)",
}
"""Each rule with statements that are against it, and not against our other rules."""

GOOD = f"""{LIMIT}
    op.create_table('gifts', sa.Column('id', sa.BigInteger(), sa.Identity(), primary_key=True))
    op.create_index('ix_gifts', 'gifts', ['id'])
    op.execute('UPDATE gifts SET id = 1')
    op.add_column('orders', sa.Column('gift', sa.Boolean()))
    op.add_column('orders', sa.Column('wrapped', sa.Boolean(), server_default=sa.text('false'), nullable=False))
    update_in_batches(orders, orders.c.id, {{'reference': 'x'}}, orders.c.reference.is_(None))
    {LIMIT}
    op.create_check_constraint('ck_orders_x', 'orders', 'total > 1', postgresql_not_valid=True)
    with op.get_context().autocommit_block():
        op.execute('ALTER TABLE orders VALIDATE CONSTRAINT ck_orders_x')
        op.drop_index('ix_orders_total', 'orders', if_exists=True, postgresql_concurrently=True)
        op.create_index('ix_orders_total', 'orders', ['total'], postgresql_concurrently=True)"""


class Planted:
    """A copy of the history as it was released, to which migrations are added."""

    def __init__(self, folder: Path) -> None:
        self.ini = Path(shutil.copy(PROJECT / "alembic.ini", folder))
        self.versions = folder / "migrations" / "versions"
        shutil.copytree(PROJECT / "migrations", folder / "migrations", ignore=shutil.ignore_patterns("*.pyc"))
        for section, versions in (
            ("alembic", self.versions),
            ("analytics", self.versions.parent / "analytics/versions"),
        ):
            for file in versions.glob("[0-9]*.py"):
                if int(file.name[:4]) > int(REVISIONS.get(section, "0")[:4]):
                    file.unlink()
        self.last = RELEASED

    def add(self, upgrade: str, downgrade: str = LIMIT, comment: str = "") -> str:
        """Add a migration; returns the name of its file."""
        new = f"{int(self.last[:4]) + 1:04d}"
        text = STEP.format(id=new, parent=self.last, upgrade=upgrade, downgrade=downgrade, comment=comment)
        (self.versions / f"{new}_planted.py").write_text(text)
        self.last = new
        return f"{new}_planted.py"

    def lint(self) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, PROJECT / ".ci" / "lint_migrations.py", "--config", self.ini],
            cwd=self.ini.parent,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def test_each_bad_migration_is_found_and_named(planted: Planted) -> None:
    files = {planted.add(statements): rule for rule, statements in BAD.items()}
    ran = planted.lint()
    assert ran.returncode == 1
    found = {tuple(line.split(": ")[:2]) for line in ran.stderr.splitlines() if not line.startswith(" ")}
    assert [(file, rule) for file, rule in files.items() if (file, rule) not in found] == [], ran.stderr
    ours = {"missing-lock-timeout", "rows-in-one-transaction", "index-not-rebuilt"}
    assert {(file, rule) for file, rule in found if rule in ours} <= set(files.items())


def test_a_careful_migration_passes(planted: Planted) -> None:
    planted.add(GOOD)
    ran = planted.lint()
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "1 migrations are newer than the release before; 0 faults.\n"


def test_a_downgrade_that_waits_for_a_lock_without_a_limit_is_found(planted: Planted) -> None:
    file = planted.add(LIMIT, downgrade="op.drop_column('orders', 'reference')")
    assert f"{file}: missing-lock-timeout" in planted.lint().stderr


def test_a_lock_outside_a_transaction_is_found(planted: Planted) -> None:
    file = planted.add(
        f"{LIMIT}\n    with op.get_context().autocommit_block():\n"
        "        op.execute('ALTER TABLE orders ADD COLUMN gift boolean')"
    )
    assert f"{file}: missing-lock-timeout" in planted.lint().stderr


def test_a_migration_may_do_what_is_forbidden_if_it_says_why(planted: Planted) -> None:
    drop = BAD["ban-drop-column"]
    planted.add(drop, comment="# lint-ignore: ban-drop-column (no release reads it)")
    assert planted.lint().returncode == 0


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        (
            "# lint-ignore: ban-drop-table (for nothing)",
            "unused-ignore: nothing in this migration breaks ban-drop-table",
        ),
        ("# lint-ignore: ban-drop-column", "bad-ignore: write it as"),
    ],
)
def test_an_ignore_needs_a_reason_and_something_to_ignore(planted: Planted, comment: str, expected: str) -> None:
    planted.add(BAD["ban-drop-column"], comment=comment)
    said = planted.lint().stderr
    assert expected in said
    assert "ban-drop-column: " in said


def test_released_migrations_are_not_judged(planted: Planted) -> None:
    ran = planted.lint()
    assert (ran.returncode, ran.stdout) == (0, "0 migrations are newer than the release before; 0 faults.\n")


def test_the_new_migrations_of_this_tree_pass() -> None:
    ran = subprocess.run(
        [sys.executable, PROJECT / ".ci" / "lint_migrations.py"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
