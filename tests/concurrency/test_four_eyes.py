"""The limits of what operators do alone hold for sessions at once, and for whatever an operator thinks of."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from services.credits.approval.rules import Limits
from services.credits.corrections import service as corrections
from services.credits.holds import service as holds
from services.credits.models import Adjustment, AdjustmentState
from services.credits.schemas import AdjustmentCreate, HoldCreate, TopUpCreate, TransferCreate
from services.credits.transfers import service as transfers
from services.database import Database, open_database
from services.errors import DomainError
from services.fields import now
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.api.later import assert_nothing_differs
from tests.concurrency.ticks import rows
from tests.factories import make_operator, make_user

Work: TypeAlias = Callable[[UnitOfWork], Awaitable[Any]]

LIMITS = Limits(Decimal(30), Decimal(20), timedelta(days=1), timedelta(0))
ALL = Decimal(10**6)


def topping_up(operator: User, user: User, amount: str) -> Work:
    wanted = TopUpCreate(user_id=user.id, amount=Decimal(amount), note="paid in cash")
    return lambda uow: corrections.top_up(uow, operator, wanted, LIMITS)


def adjusting(operator: User, user: User, amount: str) -> Work:
    wanted = AdjustmentCreate(user_id=user.id, amount=Decimal(amount), reason="a mistake")
    return lambda uow: corrections.adjust(uow, operator, wanted, LIMITS)


async def do(database: Database, work: Work) -> str:
    """`done`, `pending`, or the code of the refusal."""
    async with UnitOfWork(database.write) as uow:
        try:
            made = await work(uow)
        except DomainError as refusal:
            return refusal.code
        await uow.commit()
    return "pending" if isinstance(made, Adjustment) and made.state is AdjustmentState.pending else "done"


async def sent(database: Database, sender: User, recipient: User, amount: str) -> UUID:
    async with UnitOfWork(database.write) as uow:
        wanted = TransferCreate(to_user_id=recipient.id, amount=Decimal(amount))
        moved = await transfers.transfer(uow, sender, wanted)
        await uow.commit()
    transfer_id: UUID = moved.outcomes[0].transfer_id  # type: ignore[union-attr]
    return transfer_id


async def held(database: Database, payer: User, payee: User, amount: str) -> UUID:
    wanted = HoldCreate(to_user_id=payee.id, amount=Decimal(amount), expires_at=now() + timedelta(hours=1))
    async with UnitOfWork(database.write) as uow:
        made = await holds.hold(uow, payer, wanted, timedelta(days=1))
        await uow.commit()
    return made.id


class Scene:
    """Two operators, two users with credits, and what they have moved and held."""

    async def set(self, database: Database) -> "Scene":
        self.operator, self.second = await make_operator(database), await make_operator(database)
        self.user, self.other = await make_user(database, credits="100"), await make_user(database, credits="100")
        self.moved = await sent(database, self.user, self.other, "15")
        self.promised = await held(database, self.user, self.other, "15")
        return self

    def ways(self, operator: User) -> dict[str, Work]:
        """Each way to issue, take or move 15 credits of `self.user` without them."""
        return {
            "a top-up": topping_up(operator, self.user, "15"),
            "an adjustment": adjusting(operator, self.user, "-15"),
            "a reversal": lambda uow: corrections.reverse(uow, operator, self.moved, "a mistake", LIMITS),
            "a posting": lambda uow: holds.post(uow, operator, self.promised, None, LIMITS),
        }


WAYS = ["a top-up", "an adjustment", "a reversal", "a posting"]


@pytest.mark.parametrize("same_operator", [True, False], ids=["one operator", "one account"])
@pytest.mark.parametrize(("first", "then"), list(zip(WAYS, [*WAYS[1:], WAYS[0]], strict=True)))
async def test_the_second_of_two_sessions_waits_and_counts_what_the_first_has_done(
    database: Database, first: str, then: str, same_operator: bool
) -> None:
    """Each of them alone is within the limits of the account; both together are not."""
    scene = await Scene().set(database)
    by = scene.operator if same_operator else scene.second
    async with UnitOfWork(database.write) as uow:
        await scene.ways(scene.operator)[first](uow)
        later = asyncio.create_task(do(database, scene.ways(by)[then]))
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        async with asyncio.timeout(10):
            while await rows(database, waiting) == [0]:
                assert not later.done(), f"it did not wait: {later.result()}"
                await asyncio.sleep(0.02)
        await uow.commit()
    assert await later == ("approval_needed" if then == "a posting" else "pending")
    await assert_nothing_differs(database)


async def test_one_operator_in_many_sessions_moves_no_more_than_in_one(database: Database) -> None:
    operator = await make_operator(database)
    users = [await make_user(database) for _ in range(12)]
    heard = Counter(await asyncio.gather(*(do(database, topping_up(operator, user, "7")) for user in users)))
    assert heard == {"done": 4, "pending": 8}
    assert await rows(database, "SELECT sum(amount) FROM transfers") == [28]


async def test_many_operators_at_once_move_no_more_on_one_account_than_one(database: Database) -> None:
    operators = [await make_operator(database) for _ in range(12)]
    user = await make_user(database)
    heard = Counter(await asyncio.gather(*(do(database, adjusting(one, user, "6")) for one in operators)))
    assert heard == {"done": 3, "pending": 9}
    assert await rows(database, "SELECT sum(amount) FROM transfers") == [18]


async def test_operators_who_work_on_each_others_accounts_do_not_lock_each_other_out(database: Database) -> None:
    """Two of them, each with the other's accounts, in opposite order: no deadlock, whatever is locked first."""
    scene = await Scene().set(database)
    back = await sent(database, scene.other, scene.user, "1")
    small = Limits(ALL, ALL, timedelta(days=1), timedelta(0))

    def reversing(operator: User, transfer_id: UUID) -> Work:
        return lambda uow: corrections.reverse(uow, operator, transfer_id, "a mistake", small)

    def give(operator: User, user: User) -> Work:
        wanted = TopUpCreate(user_id=user.id, amount=Decimal(1))
        return lambda uow: corrections.top_up(uow, operator, wanted, small)

    people = [scene.operator, scene.second]
    works = [reversing(scene.operator, scene.moved), reversing(scene.second, back)]
    works += [give(people[n % 2], (scene.user, scene.other)[n // 2 % 2]) for n in range(12)]
    assert set(await asyncio.gather(*(do(database, work) for work in works))) == {"done"}
    await assert_nothing_differs(database)


Step: TypeAlias = tuple[str, int, int]
"""What to do, with which user or thing, and how many credits."""

steps = st.lists(
    st.tuples(
        st.sampled_from(["top up", "give", "take", "reverse", "post", "void", "approve"]),
        st.integers(0, 2),
        st.integers(1, 12),
    ),
    min_size=4,
    max_size=16,
)

# What the transfers themselves say: each that the staff made and no one approved, with the accounts on both sides.
ALONE = """
    WITH alone AS (
        SELECT debit_account_id, credit_account_id, coalesce(posted_amount, amount) AS amount FROM transfers
        WHERE kind IN ('top_up', 'adjustment', 'reversal') AND id <> ALL('{before}')
        AND NOT EXISTS (SELECT FROM adjustments WHERE transfer_id = transfers.id AND needs_approval)
        OR id = ANY('{resolved}')
    )
    SELECT (SELECT coalesce(sum(amount), 0) FROM alone),
        (SELECT coalesce(max(total), 0) FROM (
            SELECT sum(amount) AS total FROM accounts
            JOIN alone ON accounts.id IN (debit_account_id, credit_account_id)
            WHERE user_id IS NOT NULL GROUP BY accounts.id
        ) AS of_account)
"""


class Operator:
    """Tries one thing after another, in the order of the steps; a second one approves now and then."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.resolved: list[UUID] = []
        self.outcomes: Counter[str] = Counter()

    async def work(self, wanted: Sequence[Step]) -> None:
        self.operator, self.second = await make_operator(self.database), await make_operator(self.database)
        self.users = [await make_user(self.database, credits="50") for _ in range(3)]
        self.before = await rows(self.database, "SELECT id FROM transfers")
        pairs = [(0, 1), (1, 2), (2, 0)]
        self.moved = [await sent(self.database, self.users[a], self.users[b], "9") for a, b in pairs]
        self.held = [await held(self.database, self.users[a], self.users[b], "12") for a, b in pairs]
        for kind, number, amount in wanted:
            await self._try(kind, number, amount)
            total, of_account = await self.alone()
            assert total <= LIMITS.per_operator, f"{total} after {kind}"
            assert of_account <= LIMITS.per_account, f"{of_account} of one account after {kind}"

    async def _try(self, kind: str, number: int, amount: int) -> None:
        user = self.users[number]
        work: Work | None
        match kind:
            case "top up":
                work = topping_up(self.operator, user, str(amount))
            case "give" | "take":
                work = adjusting(self.operator, user, str(amount if kind == "give" else -amount))
            case "reverse":
                work = self._reversing(self.moved[number])
            case "approve":
                asked = await rows(self.database, "SELECT id FROM adjustments WHERE state = 'pending' ORDER BY id")
                work = self._approving(asked[number % len(asked)]) if asked else None
            case _:
                work = self._resolving(kind, self.held[number], Decimal(f"{amount}.00"))
        if work is None:
            return
        told = await do(self.database, work)
        self.outcomes[told] += 1
        if kind in ("post", "void") and told == "done":
            self.resolved.append(self.held[number])

    def _reversing(self, transfer_id: UUID) -> Work:
        return lambda uow: corrections.reverse(uow, self.operator, transfer_id, "a mistake", LIMITS)

    def _approving(self, adjustment_id: UUID) -> Work:
        return lambda uow: corrections.approve(uow, self.second, adjustment_id, LIMITS)

    def _resolving(self, kind: str, transfer_id: UUID, amount: Decimal) -> Work:
        if kind == "void":
            return lambda uow: holds.void(uow, self.operator, transfer_id, LIMITS)
        return lambda uow: holds.post(uow, self.operator, transfer_id, amount, LIMITS)

    async def alone(self) -> tuple[Decimal, Decimal]:
        """The sum that no one approved, and the largest of those of one account."""
        listed = {
            name: "{" + ",".join(map(str, ids)) + "}"
            for name, ids in {"before": self.before, "resolved": self.resolved}.items()
        }
        statement = ALONE.replace("{before}", listed["before"]).replace("{resolved}", listed["resolved"])
        [(total, of_account)] = await rows(self.database, statement)
        return total, of_account


def test_whatever_an_operator_does_alone_stays_within_the_limits(settings: Settings) -> None:
    outcomes: Counter[str] = Counter()
    with asyncio.Runner() as runner:
        context = open_database(settings, "operators")
        database = runner.run(context.__aenter__())

        @hypothesis_settings(
            max_examples=25, database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(wanted=steps)
        def work(wanted: list[Step]) -> None:
            operator = Operator(database)
            runner.run(operator.work(wanted))
            outcomes.update(operator.outcomes)

        try:
            work()
            runner.run(assert_nothing_differs(database))
        finally:
            runner.run(context.__aexit__(None, None, None))
    # The limits were reached: otherwise nothing was tried.
    assert min(outcomes["done"], outcomes["pending"], outcomes["approval_needed"]) > 5, outcomes
