"""A violated constraint of the ledger's tables becomes its refusal, and leaves the transaction usable."""

import re
from decimal import Decimal

import pytest
from sqlalchemy.exc import DBAPIError

from services.credits.ledger import rules
from services.credits.ledger.service import moving
from services.database import Database
from services.errors import DomainError
from services.fields import new_id
from services.sql import Sql, Statement
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import rows
from tests.factories import make_user

POSTED = """
    INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, reverses,
        resolved_at)
    SELECT :id, {debit}, {credit}, {amount}, '{kind}', 'posted', {posted}, {reverses}, now()
    FROM (SELECT min(id) AS one, max(id) AS two FROM accounts WHERE user_id IS NOT NULL) AS account
"""


def posted(
    debit: str = "one", credit: str = "two", amount: int = 1, part: int = 1, kind: str = "transfer", of: str = "NULL"
) -> str:
    return POSTED.format(debit=debit, credit=credit, amount=amount, posted=part, kind=kind, reverses=of)


FIRST = "(SELECT id FROM transfers ORDER BY id LIMIT 1)"
CLOSED = "WHERE closed_at IS NOT NULL"
OPEN = "WHERE user_id IS NOT NULL AND closed_at IS NULL"

REFUSED = {
    "fk_transfers_credit_account_id_accounts": (posted(credit="-1"), "unknown_recipient"),
    "ck_transfers_accounts_differ": (posted(credit="one"), "same_account"),
    "accounts_keep": (f"UPDATE accounts SET posted = posted + 1, version = version + 1 {CLOSED}", "account_closed"),
    "ck_accounts_closed": (f"UPDATE accounts SET closed_at = now(), held = 1 {OPEN}", "account_closed"),
    "ck_accounts_available": (f"UPDATE accounts SET held = posted + 0.01 {OPEN}", "insufficient_credits"),
    "ck_transfers_amount": (posted(amount=0, part=0), "amount_invalid"),
    "ck_transfers_posted_amount": (posted(part=2), "amount_invalid"),
    "22003": (f"UPDATE accounts SET posted = 10000000000000000 {OPEN}", "amount_invalid"),
    "uq_transfers_reverses": (posted(kind="reversal", of=FIRST), "transfer_already_reversed"),
    "ck_accounts_held": (f"UPDATE accounts SET held = -0.01 {OPEN}", "transfer_refused"),
}
"""Statements that violate a rule of the database, and the refusal that a client gets."""

WITHOUT_A_CODE = {
    "accounts": {
        "pk_accounts",
        "ck_accounts_held",
        "ck_accounts_owner",
        "fk_accounts_user_id_users",
        "uq_accounts_system_name",
        "uq_accounts_user_id",
    },
    "transfers": {
        "ck_transfers_expires",
        "ck_transfers_kind",
        "ck_transfers_posted",
        "ck_transfers_resolved",
        "ck_transfers_reversal",
        "ck_transfers_state",
        "fk_transfers_debit_account_id_accounts",
        "fk_transfers_order_id_orders",
        "fk_transfers_reverses_transfers",
        "pk_transfers",
        "transfers_keep",
        "transfers_resolve_once",
    },
    "entries": {
        "ck_entries_amount",
        "ck_entries_version",
        "entries_keep",
        "fk_entries_account_id_accounts",
        "fk_entries_transfer_id_transfers",
        "pk_entries",
    },
}
"""No request violates these: a violation is answered with `transfer_refused`, and logged."""


@pytest.mark.parametrize("rule", REFUSED)
async def test_a_violated_constraint_becomes_its_refusal_and_the_transaction_goes_on(
    database: Database, rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    statement, code = REFUSED[rule]
    for _ in range(2):
        await make_user(database, credits="5")
    await rows(database, f"UPDATE accounts SET closed_at = now() {OPEN} AND user_id = (SELECT max(id) FROM users)")
    async with UnitOfWork(database.write) as uow:
        sql = Sql.of(uow.session)
        await sql.run(Statement(posted(kind="reversal", of=FIRST)), id=new_id())
        with pytest.raises(DomainError) as told:
            async with moving(uow, Decimal(7), "#/transfers/3"):
                await sql.run(Statement(statement), **({"id": new_id()} if ":id" in statement else {}))
        await uow.commit()

    assert told.value.code == code
    assert [re.sub(r"/(amount|to_user_id)$", "", fault.pointer) for fault in told.value.faults] == ["#/transfers/3"]
    assert f"({rule}: {code})" in caplog.text
    assert await rows(database, "SELECT count(*) FROM transfers WHERE kind = 'reversal'") == [1]


async def test_each_constraint_of_the_ledger_has_a_refusal_or_is_known_to_need_none(database: Database) -> None:
    found: dict[str, set[str]] = {}
    for table, name in await rows(
        database,
        """
        SELECT relname, conname FROM pg_constraint JOIN pg_class ON pg_class.oid = conrelid
        WHERE relname IN ('accounts', 'transfers', 'entries') AND contype <> 'n'
        UNION SELECT relname, tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
        WHERE relname IN ('accounts', 'transfers', 'entries') AND NOT tgisinternal
        UNION SELECT tablename, indexname FROM pg_indexes
        WHERE tablename IN ('accounts', 'transfers', 'entries') AND indexdef LIKE 'CREATE UNIQUE%'
        """,
    ):
        found.setdefault(table, set()).add(name)
    names = set().union(*found.values())
    told = rules.REFUSED_BY.keys() - {"22003"}
    assert told <= names, "a refusal of a constraint that is gone"
    assert {table: names - told for table, names in found.items()} == WITHOUT_A_CODE
    assert REFUSED.keys() >= rules.REFUSED_BY.keys()


async def test_contention_is_not_a_refusal(database: Database) -> None:
    await make_user(database, credits="5")
    lock = Statement("SELECT FROM accounts WHERE user_id IS NOT NULL FOR UPDATE NOWAIT")
    async with UnitOfWork(database.write) as holder, UnitOfWork(database.write) as uow:
        await Sql.of(holder.session).fetch(lock)
        with pytest.raises(DBAPIError, match="could not obtain lock"):
            async with moving(uow, Decimal(7)):
                await Sql.of(uow.session).fetch(lock)
