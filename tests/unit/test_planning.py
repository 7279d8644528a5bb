"""Planning a batch in memory gives the same result as carrying it out naively, one transfer after another."""

import copy
from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from services.credits.ledger.rules import Balance, Item, Posting
from services.credits.transfers.planning import carry_out, cause, chains, take_back
from services.errors import DomainError
from services.fields import MAX_CREDITS
from tests.naive_bank import UNKNOWN, Bank, Wanted, as_one_chain, naively

ACCOUNTS = 4

cents = st.integers(0, 3000).map(lambda number: Decimal(number) / 100)
amounts = st.one_of(st.integers(1, 2000).map(lambda number: Decimal(number) / 100), st.just(MAX_CREDITS))


@st.composite
def banks(draw: st.DrawFn) -> Bank:
    posted = [draw(cents) for _ in range(ACCOUNTS)]
    if draw(st.booleans()):
        posted[0] = MAX_CREDITS
    held = [min(draw(cents), balance) if draw(st.booleans()) else Decimal(0) for balance in posted]
    return Bank(posted, held, [draw(st.integers(0, 9)) == 0 for _ in range(ACCOUNTS)])


wishes = st.builds(
    Wanted,
    debit=st.integers(0, ACCOUNTS - 1),
    credit=st.integers(UNKNOWN, ACCOUNTS - 1),
    amount=amounts,
    linked=st.booleans(),
)


@given(banks(), st.lists(wishes, min_size=1, max_size=30), st.booleans())
@settings(max_examples=400, deadline=None)
def test_the_outcomes_and_balances_are_those_of_one_transfer_after_another(
    bank: Bank, batch: list[Wanted], atomic: bool
) -> None:
    if atomic:
        batch = as_one_chain(batch)
    balances = [
        Balance(number, number, bank.posted[number], bank.held[number], 0, bank.closed[number])
        for number in range(ACCOUNTS)
    ]
    before = copy.deepcopy(balances)
    # Between users, one whose account is closed is not known as a recipient.
    unknown = {UNKNOWN, *(number for number in range(ACCOUNTS) if bank.closed[number])}
    items = [
        Item(
            f"#/{index}",
            balances[one.debit],
            None if one.credit in unknown - {one.debit} else balances[one.credit],
            one.amount,
            "",
        )
        for index, one in enumerate(batch)
    ]

    outcomes = carry_out(chains(items, [one.linked for one in batch]))

    bank, expected = naively(bank, batch)
    assert [outcome.code if isinstance(outcome, DomainError) else "posted" for outcome in outcomes] == expected
    assert [balance.posted for balance in balances] == bank.posted
    entries: dict[int, list[tuple[int, Decimal, Decimal]]] = {number: [] for number in range(ACCOUNTS)}
    for posting in outcomes:
        if isinstance(posting, Posting):
            debit, credit, amount = posting.debit.account_id, posting.credit.account_id, posting.item.amount
            entries[debit].append((posting.debit_version, -amount, posting.debit_balance))
            entries[credit].append((posting.credit_version, amount, posting.credit_balance))
    for number in range(ACCOUNTS):
        assert entries[number] == [(n, *entry) for n, entry in enumerate(bank.entries[number], start=1)]
        assert balances[number].version == len(entries[number])
    if atomic:
        failed = [code for code in expected if code not in ("posted", "linked_failed")]
        found = cause(outcomes)
        assert (found.code if found else None) == (failed[0] if failed else None)

    take_back(outcomes)
    assert balances == before


def test_a_failed_item_says_where_it_stands_and_the_linked_ones_say_which_one_failed() -> None:
    sender, receiver = Balance(1, 1, Decimal(5), Decimal(0), 7, False), Balance(2, 2, Decimal(0), Decimal(0), 0, False)
    items = [Item(f"#/transfers/{n}", sender, receiver, Decimal(amount), "") for n, amount in enumerate((5, 1, 1))]
    first, second, third = carry_out(chains(items, [True, True, False]))
    assert isinstance(second, DomainError)
    assert (second.code, second.faults[0].pointer) == ("insufficient_credits", "#/transfers/1/amount")
    for outcome, pointer in ((first, "#/transfers/0"), (third, "#/transfers/2")):
        assert isinstance(outcome, DomainError)
        assert (outcome.code, outcome.faults[0].pointer) == ("linked_failed", pointer)
        assert "#/transfers/1" in outcome.detail
    assert sender == Balance(1, 1, Decimal(5), Decimal(0), 7, False)
