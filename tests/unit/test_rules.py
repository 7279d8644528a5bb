"""Why credits may not move: the first reason of the documented order, for one transfer and for several together."""

import re
from decimal import Decimal
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from services.credits.ledger.rules import PRECEDENCE, Balance, Item, joint_refusal, post, refusal
from services.fields import MAX_CREDITS, new_id

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "http-api.md"
ACCOUNTS = 4
SYSTEM = 0

cents = st.integers(0, 300).map(lambda number: Decimal(number) / 100)
wishes = st.tuples(
    st.integers(0, ACCOUNTS - 1),
    st.one_of(st.none(), st.integers(0, ACCOUNTS - 1)),
    st.one_of(cents.map(lambda amount: amount + Decimal("0.01")), st.just(MAX_CREDITS)),
)


@st.composite
def accounts(draw: st.DrawFn) -> list[Balance]:
    """A system account and some users; a closed account has no held credits."""
    found = [Balance(SYSTEM, None, -draw(cents), Decimal(0), 0, False)]
    for number in range(1, ACCOUNTS):
        closed = draw(st.integers(0, 4)) == 0
        held = Decimal(0) if closed else draw(cents)
        posted = draw(st.one_of(cents, st.just(MAX_CREDITS - 10)))
        found.append(Balance(number, number, posted + held, held, 0, closed))
    return found


def reasons(items: list[Item]) -> set[str]:
    """All reasons against these transfers together, in no particular order."""
    found: set[str] = set()
    for item in items:
        debit, credit = item.debit, item.credit
        paid = sum(one.amount for one in items if one.debit is debit)
        if debit.user_id is not None and debit.posted - debit.held < paid:
            found.add("insufficient_credits")
        if debit.is_closed or (credit and credit.is_closed):
            found.add("account_closed")
        if credit is None:
            found.add("unknown_recipient")
        elif credit is debit:
            found.add("same_account")
        elif credit.posted + sum(one.amount for one in items if one.credit is credit) > MAX_CREDITS:
            found.add("amount_invalid")
    return found


@given(accounts(), st.lists(wishes, min_size=1, max_size=4))
@settings(max_examples=500, deadline=None)
def test_a_refusal_gives_the_first_reason_in_the_documented_order(
    balances: list[Balance], wanted: list[tuple[int, int | None, Decimal]]
) -> None:
    items = [Item("#", balances[d], None if c is None else balances[c], amount, "") for d, c, amount in wanted]
    against = reasons(items)
    first = next((kind.code for kind in PRECEDENCE if kind.code in against), None)
    error = joint_refusal(items)
    assert (error.code if error else None) == first

    alone = refusal(items[0])
    against = reasons(items[:1])
    assert (alone.code if alone else None) == next((kind.code for kind in PRECEDENCE if kind.code in against), None)


def test_a_closed_payee_of_the_last_comes_before_too_few_credits_for_the_first() -> None:
    payer = Balance(1, 1, Decimal(5), Decimal(0), 0, False)
    open_payee, closed_payee = (Balance(n, n, Decimal(0), Decimal(0), 0, n == 3) for n in (2, 3))
    items = [Item("", payer, open_payee, Decimal(9), ""), Item("", payer, closed_payee, Decimal(1), "")]
    assert str(joint_refusal(items)) == "the account of user 3 is closed"
    assert str(joint_refusal(items[:1])) == "the available credits do not cover 9"


def test_transfers_are_refused_together_by_their_sum_and_not_each_alone() -> None:
    payer, payee, other = (Balance(n, n, Decimal(5 * (n == 1)), Decimal(0), 0, False) for n in (1, 2, 3))
    items = [Item("", payer, payee, Decimal(3), ""), Item("", payer, other, Decimal(3), "")]
    assert [refusal(item) for item in items] == [None, None]
    assert str(joint_refusal(items)) == "the available credits do not cover 6"


def test_a_movement_that_no_request_asks_for_names_no_field() -> None:
    payer, payee = (Balance(n, n, Decimal(0), Decimal(0), 0, False) for n in (1, 2))
    for pointer, fields in (("", []), ("#/transfers/3", ["#/transfers/3/amount"])):
        error = refusal(Item(pointer, payer, payee, Decimal(1), ""))
        assert error is not None
        assert [fault.pointer for fault in error.faults] == fields


def test_a_posting_says_what_both_entries_say() -> None:
    payer, payee = Balance(1, 1, Decimal(5), Decimal(1), 7, False), Balance(2, 2, Decimal(1), Decimal(0), 0, False)
    posting = post(Item("#", payer, payee, Decimal(4), ""), new_id())
    assert (posting.debit_balance, posting.debit_version) == (Decimal(1), 8)
    assert (posting.credit_balance, posting.credit_version) == (Decimal(5), 1)


def test_the_documentation_lists_the_refusals_in_this_order() -> None:
    section = DOCS.read_text().partition("## Which refusal is given")[2].partition("\n## ")[0]
    listed = re.findall(r"^\d+\. `(\w+)`", section, re.MULTILINE)
    assert listed == [kind.code for kind in PRECEDENCE]
