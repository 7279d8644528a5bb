"""All SQL of transfers between users: two statements, however many transfers there are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.credits.planning import Balance, Posting
from services.sql import SqlAccess, Statement

# Not a join: for that, a plan made for any number of users would read the whole table while it is small.
_PARTIES = """
    SELECT user_id, id AS account_id, posted, held, version, closed_at IS NOT NULL AS is_closed, now() AS at,
        (SELECT is_active AND deleted_at IS NULL FROM users WHERE users.id = accounts.user_id) AS is_known
    FROM accounts WHERE user_id = ANY(CAST(:user_ids AS bigint[]))
"""
_READ_PARTIES = Statement(_PARTIES)
_LOCK_PARTIES = Statement(f"{_PARTIES} ORDER BY id FOR NO KEY UPDATE")

# The accounts are locked, so what is written is what was computed from them.
_WRITE = Statement("""
    WITH new AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:amounts AS numeric[]), CAST(:notes AS text[]),
            CAST(:debits AS bigint[]), CAST(:debit_versions AS bigint[]), CAST(:debit_balances AS numeric[]),
            CAST(:credits AS bigint[]), CAST(:credit_versions AS bigint[]), CAST(:credit_balances AS numeric[])
        ) AS new(
            id, amount, note, debit, debit_version, debit_balance, credit, credit_version, credit_balance
        )
    ), written AS (
        INSERT INTO transfers
            (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, note, resolved_at)
        SELECT id, debit, credit, amount, 'transfer', 'posted', amount, note, now() FROM new
    ), entered AS (
        INSERT INTO entries (account_id, version, transfer_id, amount, balance)
        SELECT debit, debit_version, id, -amount, debit_balance FROM new
        UNION ALL SELECT credit, credit_version, id, amount, credit_balance FROM new
    )
    UPDATE accounts SET posted = after.posted, version = after.version
    FROM unnest(CAST(:account_ids AS bigint[]), CAST(:posted AS numeric[]), CAST(:versions AS bigint[]))
        AS after(account_id, posted, version)
    WHERE accounts.id = after.account_id
""")


@dataclass(frozen=True, slots=True)
class Parties:
    """The accounts that transfers are about, by user. Of the recipients, unknown ones are missing."""

    sender: Balance
    recipients: Mapping[int, Balance]
    at: datetime
    """The transaction's time, which the transfers get."""


class TransferRepository(SqlAccess):
    """Transfers between users."""

    async def parties(self, sender_id: int, recipient_ids: Iterable[int], *, lock: bool) -> Parties:
        """The users' accounts; locked, in the order of their ids, until the transaction ends, or only read."""
        statement = _LOCK_PARTIES if lock else _READ_PARTIES
        rows = await self.sql.fetch(statement, user_ids=list({sender_id, *recipient_ids}))
        balances = {
            row["user_id"]: Balance(row["account_id"], row["posted"], row["held"], row["version"], row["is_closed"])
            for row in rows
            # Who was deleted or deactivated is as unknown as who never was; the sender has signed in a moment ago.
            if row["is_known"] or row["user_id"] == sender_id
        }
        return Parties(balances[sender_id], balances, rows[0]["at"])

    async def write(self, postings: Sequence[Posting]) -> None:
        """Write transfers that take effect at once, their entries, and the balances they lead to."""
        touched = {balance.account_id: balance for p in postings for balance in (p.debit, p.credit)}
        await self.sql.run(
            _WRITE,
            ids=[posting.transfer_id for posting in postings],
            amounts=[posting.item.amount for posting in postings],
            notes=[posting.item.note for posting in postings],
            debits=[posting.debit.account_id for posting in postings],
            debit_versions=[posting.debit_version for posting in postings],
            debit_balances=[posting.debit_balance for posting in postings],
            credits=[posting.credit.account_id for posting in postings],
            credit_versions=[posting.credit_version for posting in postings],
            credit_balances=[posting.credit_balance for posting in postings],
            account_ids=list(touched),
            posted=[balance.posted for balance in touched.values()],
            versions=[balance.version for balance in touched.values()],
        )
