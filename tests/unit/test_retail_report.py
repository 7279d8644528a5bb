"""The summary: figures that add up, and checks that turn false when they should."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from rich.console import Console

from services.cli.client import Reply
from services.cli.retail.orders import PlacedOrder, Refusal
from services.cli.retail.plan import make_plan
from services.cli.retail.report import Outcome, print_table, summarize
from services.cli.retail.source import Line

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
BALANCED = {"entries_sum": "0.00", "negative_stock": 0, "balanced": True}


def order(cents: int = 200, status: str = "confirmed", placed: float = 1.0, took: float = 0.5) -> PlacedOrder:
    at = NOON + timedelta(seconds=placed)
    return PlacedOrder(status, cents, at, at + timedelta(seconds=took))


def outcome_of(**changes: Any) -> Outcome:
    """Three invoices of 2.00 each and a cancelled one; all went well unless `changes` say otherwise."""
    lines = [Line(number, "85123A", "HEART", 2, Decimal("1.00"), "1") for number in ("1", "2", "3", "C4")]
    plan = make_plan(lines).finish("f" * 64)
    outcome = Outcome(
        plan=plan,
        chosen=plan.invoices,
        orders={invoice.number: order() for invoice in plan.invoices},
        refusals=[],
        newest_before=NOON,
        books=BALANCED,
        seller_received=600,
        placing_seconds=2.0,
        seconds=3.0,
    )
    return replace(outcome, **changes)


def failed(outcome: Outcome) -> set[str]:
    return {name for name, held in summarize(outcome).checks.items() if not held}


def test_a_run_in_which_all_went_well() -> None:
    summary = summarize(outcome_of())
    assert summary.all_true
    assert (summary.lines_read, summary.lines_in_orders, summary.lines_skipped) == (4, 3, {"cancelled_invoice": 1})
    assert (summary.invoices_read, summary.invoices_skipped) == (4, {"cancelled": 1})
    assert (summary.orders_placed_now, summary.orders_placed_before) == (3, 0)
    assert (summary.credits_moved, summary.credits_of_invoices) == ("6.00", "6.00")
    assert (summary.confirmed_p50_seconds, summary.orders_per_second) == (0.5, 1.5)


def test_orders_as_old_as_the_newest_before_the_run_count_as_placed_before() -> None:
    orders = {"1": order(placed=-5), "2": order(placed=0), "3": order(placed=0.001)}
    summary = summarize(outcome_of(orders=orders))
    assert (summary.orders_placed_now, summary.orders_placed_before) == (1, 2)
    assert summary.all_true


def test_if_there_were_no_orders_before_all_are_new() -> None:
    assert summarize(outcome_of(newest_before=None)).orders_placed_now == 3


def test_invoices_beyond_the_limit_are_counted_and_their_credits_are_not_expected() -> None:
    whole = outcome_of()
    limited = replace(whole, chosen=whole.chosen[:1], orders={"1": order()})
    summary = summarize(limited)
    assert summary.all_true
    assert summary.credits_of_invoices == "2.00"
    assert summary.invoices_skipped == {"beyond_limit": 2, "cancelled": 1}
    assert summary.lines_in_orders + sum(summary.lines_skipped.values()) == summary.lines_read


def test_a_refused_invoice_is_counted_and_turns_a_check_false() -> None:
    outcome = outcome_of(refusals=[Refusal("2", Reply(422, {}, "invalid_input"))], seller_received=400)
    outcome = replace(outcome, orders={"1": order(), "3": order()})
    summary = summarize(outcome)
    assert failed(outcome) == {"no_invoice_refused"}
    assert summary.invoices_skipped["refused_by_service"] == 1
    assert summary.lines_skipped["invoice_refused_by_service"] == 1
    assert summary.credits_moved == summary.credits_of_invoices == "4.00"


@pytest.mark.parametrize(
    ("changes", "false"),
    [
        ({"books": BALANCED | {"entries_sum": "0.01"}}, {"sum_of_entries_zero"}),
        ({"books": BALANCED | {"negative_stock": 1}}, {"no_negative_stock"}),
        ({"books": BALANCED | {"balanced": False}}, {"books_balanced"}),
        ({"seller_received": 599}, {"seller_account_equals_credits_moved"}),
        (
            {"orders": {"1": order(), "2": order(status="rejected"), "3": order()}, "seller_received": 400},
            {"credits_moved_equal_totals_of_accepted_invoices"},
        ),
        (
            {"orders": {"1": order(), "2": order(status="pending"), "3": order()}, "seller_received": 400},
            {"every_order_final", "credits_moved_equal_totals_of_accepted_invoices"},
        ),
        (
            {"orders": {"1": order(), "2": order()}, "seller_received": 400},
            {
                "every_accepted_invoice_is_one_order",
                "credits_moved_equal_totals_of_accepted_invoices",
            },
        ),
        (
            {"orders": {"1": order(199), "2": order(201), "3": order()}},
            {"every_accepted_invoice_is_one_order"},
        ),
    ],
    ids=["entries", "stock", "books", "account", "rejected", "pending", "missing", "two wrong totals"],
)
def test_each_check_turns_false_on_its_own_trouble(changes: dict[str, Any], false: set[str]) -> None:
    assert failed(outcome_of(**changes)) == false


def test_percentiles_are_those_of_the_confirmed_orders() -> None:
    orders = {"1": order(took=0.1), "2": order(took=0.4), "3": order(status="rejected", took=9)}
    summary = summarize(outcome_of(orders=orders))
    assert (summary.confirmed_p50_seconds, summary.confirmed_p95_seconds) == (0.1, 0.4)


def test_without_a_confirmed_order_there_are_no_percentiles() -> None:
    assert summarize(outcome_of(orders={})).confirmed_p95_seconds is None


def test_the_json_says_whether_all_checks_are_true() -> None:
    good, bad = summarize(outcome_of()), summarize(outcome_of(seller_received=1))
    assert json.loads(good.as_json())["ok"] is True
    assert json.loads(bad.as_json())["ok"] is False


def shown(show: Callable[[Console], None]) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        show(console)
    return captured.get()


def test_the_table_shows_every_reason_and_every_check() -> None:
    summary = summarize(outcome_of(seller_received=1))
    text = shown(lambda console: print_table(summary, console))
    assert "skipped: cancelled invoice" in text
    assert all(name.replace("_", " ") in text for name in summary.checks)
    assert text.count("FALSE") == 1
