"""Batches on real PostgreSQL give the same result as naive execution, whatever the database refuses."""

from dataclasses import dataclass
from decimal import Decimal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from services.credits.schemas import BatchMode, TransferBatchCreate, TransferItem
from services.credits.transfers import service as transfers
from services.database import Database
from services.errors import DomainError
from services.operations import service as operations
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.concurrency.ticks import rows
from tests.factories import make_user
from tests.naive_bank import POISON, UNKNOWN, Bank, Wanted, as_one_chain, naively

SENDER, FIRST, SECOND, CLOSED = range(4)
NOBODY = 2**62

amounts = st.one_of(st.integers(1, 500), st.integers(4000, 12000)).map(lambda cents: Decimal(cents) / 100)
wishes = st.builds(
    Wanted,
    debit=st.just(SENDER),
    credit=st.sampled_from([FIRST, FIRST, FIRST, SECOND, SECOND, CLOSED, SENDER, UNKNOWN]),
    amount=amounts,
    linked=st.booleans(),
    note=st.sampled_from(["", "", "", "", POISON]),
)


@dataclass
class Fixed:
    """The accounts of all examples; each example begins where the one before ended."""

    users: list[User]

    async def bank(self, database: Database) -> Bank:
        found = await rows(
            database, "SELECT posted, held, closed_at IS NOT NULL FROM accounts ORDER BY user_id LIMIT 4"
        )
        posted, held, closed = (list(column) for column in zip(*found, strict=True))
        return Bank(posted, held, closed)


async def prepare(database: Database) -> Fixed:
    users = [await make_user(database, credits=credits_) for credits_ in ("100", "0", "5", "0")]
    async with database.engine.begin() as connection:
        await connection.execute(text("UPDATE accounts SET closed_at = now() WHERE user_id = :id"), {"id": users[3].id})
        await connection.execute(text("ALTER TABLE transfers ADD CONSTRAINT no_poison CHECK (note <> 'poison')"))
    return Fixed(users)


async def refill(database: Database, fixed: Fixed) -> None:
    """Send all credits back, so that each example has something to move."""
    bank = await fixed.bank(database)
    for number in (FIRST, SECOND):
        if bank.posted[number]:
            items = [TransferItem(to_user_id=fixed.users[SENDER].id, amount=bank.posted[number])]
            async with UnitOfWork(database.write) as uow:
                wanted = TransferBatchCreate(mode=BatchMode.atomic, transfers=items)
                await transfers.transfer_batch(uow, fixed.users[number], wanted)
                await uow.commit()


async def test_a_batch_gives_the_same_result_as_its_transfers_one_after_another(database: Database) -> None:
    fixed = await prepare(database)
    before = await rows(database, "SELECT count(*) FROM transfers")

    @given(st.lists(wishes, min_size=1, max_size=14), st.sampled_from(BatchMode))
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    def example(batch: list[Wanted], mode: BatchMode) -> None:
        examples.append((batch, mode))

    examples: list[tuple[list[Wanted], BatchMode]] = []
    example()
    for batch, mode in examples:
        await check(database, fixed, batch, mode)
        await refill(database, fixed)

    assert await rows(database, "SELECT count(*) FROM transfers") != before
    async with UnitOfWork(database.read) as uow:
        assert (await operations.books(uow)).balanced


async def check(database: Database, fixed: Fixed, batch: list[Wanted], mode: BatchMode) -> None:
    ids = {number: user.id for number, user in enumerate(fixed.users)} | {UNKNOWN: NOBODY}
    items = [
        TransferItem(to_user_id=ids[one.credit], amount=one.amount, note=one.note, linked=one.linked) for one in batch
    ]
    bank = await fixed.bank(database)
    entries = len(await rows(database, "SELECT version FROM entries"))
    expected, codes = naively(bank, batch if mode is BatchMode.independent else as_one_chain(batch))

    wanted = TransferBatchCreate(mode=mode, transfers=items)
    async with UnitOfWork(database.write) as uow:
        done = await transfers.transfer_batch(uow, fixed.users[SENDER], wanted.model_copy(update={"dry_run": True}))
        dry = [outcome.code if isinstance(outcome, DomainError) else "posted" for outcome in done.outcomes]
        await uow.commit()
    async with UnitOfWork(database.write) as uow:
        done = await transfers.transfer_batch(uow, fixed.users[SENDER], wanted)
        await uow.commit()

    assert [outcome.code if isinstance(outcome, DomainError) else "posted" for outcome in done.outcomes] == codes
    # A dry run does not say which recipients there are.
    if not any(one.note == POISON or one.credit in (CLOSED, UNKNOWN) for one in batch):
        assert dry == codes
    assert (await fixed.bank(database)).posted == expected.posted
    assert len(await rows(database, "SELECT version FROM entries")) == entries + sum(map(len, expected.entries))
    gaps = (
        "SELECT count(*) FROM accounts WHERE version <> (SELECT count(*) FROM entries WHERE account_id = accounts.id)"
    )
    assert await rows(database, gaps) == [0]
