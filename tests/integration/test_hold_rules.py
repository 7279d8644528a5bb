"""The hold of an order decides in SQL. It must refuse what `joint_refusal` refuses, for the same reason."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from services.credits.ledger.repository import Share
from services.credits.ledger.rules import Balance, Item, joint_refusal
from services.database import Database
from services.errors import AccountClosed, DomainError, InsufficientCredits
from services.fields import new_id
from services.sql import Sql, Statement
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.factories import make_user

SELLERS = 3

SET = Statement("""
    UPDATE accounts SET posted = CAST(:posted AS numeric), held = CAST(:held AS numeric),
        closed_at = CASE WHEN CAST(:closed AS boolean) THEN now() END
    WHERE user_id = :user_id RETURNING id
""")
SEEN = Statement("""
    SELECT (SELECT count(*) FROM transfers WHERE order_id = :order_id AND state = 'pending') AS pending,
        (SELECT array_agg(held ORDER BY user_id) FROM accounts WHERE user_id = ANY(CAST(:user_ids AS bigint[]))) AS held
""")

cents = st.integers(0, 900).map(lambda number: Decimal(number) / 100)
mostly_open = st.integers(0, 5).map(lambda number: number == 0)


@dataclass(frozen=True)
class State:
    """An account, and what an order pays to it: nothing if it is the buyer's."""

    posted: Decimal
    held: Decimal
    closed: bool
    share: Decimal


@st.composite
def orders(draw: st.DrawFn) -> list[State]:
    """The buyer's account and those of the sellers. The available credits are often just enough, or a cent short."""
    shares = [draw(cents) + Decimal("0.01") for _ in range(draw(st.integers(1, SELLERS)))]
    difference = draw(st.one_of(st.sampled_from([Decimal("-0.01"), Decimal(0), Decimal("0.01")]), cents))
    available = max(Decimal(0), sum(shares, Decimal(0)) + difference * draw(st.sampled_from([1, -1])))
    sellers = [_account(draw, draw(cents), share) for share in shares]
    return [_account(draw, available, Decimal(0)), *sellers]


def _account(draw: st.DrawFn, available: Decimal, share: Decimal) -> State:
    closed = draw(mostly_open)
    # A closed account has no held credits.
    held = Decimal(0) if closed else draw(cents)
    return State(available + held, held, closed, share)


async def test_an_order_is_held_or_refused_as_the_rules_say(database: Database) -> None:
    users = [await make_user(database) for _ in range(1 + SELLERS)]
    examples: list[list[State]] = []

    @given(orders())
    @settings(max_examples=250, deadline=None, derandomize=True, database=None)
    def example(order: list[State]) -> None:
        examples.append(order)

    example()
    told = {await check(database, users, order) for order in examples}
    assert told == {None, AccountClosed, InsufficientCredits}


async def check(database: Database, users: list[User], order: list[State]) -> type[DomainError] | None:
    """The error that the order was refused with. Nothing of the example is committed."""
    order_id = new_id()
    async with UnitOfWork(database.write) as uow:
        sql = Sql.of(uow.session)
        accounts: list[Balance] = []
        for user, state in zip(users, order, strict=False):
            values = {"posted": state.posted, "held": state.held, "closed": state.closed}
            (row,) = await sql.fetch(SET, user_id=user.id, **values)
            accounts.append(Balance(row["id"], user.id, state.posted, state.held, 0, state.closed))
        buyer, *sellers = accounts
        shares = [Share(seller.account_id, state.share) for seller, state in zip(sellers, order[1:], strict=True)]
        items = [Item("", buyer, seller, share.amount, "") for seller, share in zip(sellers, shares, strict=True)]
        expected = joint_refusal(items)

        refused: DomainError | None = None
        try:
            await uow.ledger.hold(order_id, users[0].id, shares, timedelta(hours=1))
        except DomainError as error:
            refused = error

        assert (type(refused), str(refused)) == (type(expected), str(expected)), order
        taken = Decimal(0) if refused else sum((share.amount for share in shares), Decimal(0))
        user_ids = [user.id for user, _ in zip(users, order, strict=False)]
        (seen,) = await sql.fetch(SEEN, order_id=order_id, user_ids=user_ids)
        assert seen["pending"] == (0 if refused else len(shares))
        assert seen["held"] == [buyer.held + taken, *(seller.held for seller in sellers)]
    return type(refused) if refused else None
