"""The summary of an import: what happened to every line and invoice, and the checks."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from math import ceil
from typing import Any

from rich.console import Console
from rich.table import Table

from services.cli.retail.orders import PlacedOrder, Refusal
from services.cli.retail.plan import REASON_OF_LINES, Invoice, Plan, credits_of
from services.cli.retail.reasons import InvoiceReason

_MOVED = frozenset({"confirmed", "fulfilled"})
"""Statuses of orders whose credits the seller has received."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an import observed. Times are seconds, amounts cents."""

    plan: Plan
    chosen: Sequence[Invoice]
    orders: Mapping[str, PlacedOrder]
    refusals: Sequence[Refusal]
    newest_before: datetime | None
    books: Mapping[str, Any]
    seller_received: int
    placing_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures, as `--json` prints them. Credits are strings with two decimals, times seconds."""

    data_set: str
    lines_read: int
    lines_in_orders: int
    lines_skipped: dict[str, int]
    invoices_read: int
    orders_placed_now: int
    orders_placed_before: int
    invoices_skipped: dict[str, int]
    orders_by_status: dict[str, int]
    credits_of_invoices: str
    credits_moved: str
    confirmed_p50_seconds: float | None
    confirmed_p95_seconds: float | None
    duration_seconds: float
    placing_seconds: float
    orders_per_second: float
    checks: dict[str, bool]

    @property
    def all_true(self) -> bool:
        return all(self.checks.values())

    def as_json(self) -> str:
        return json.dumps({**asdict(self), "ok": self.all_true}, indent=2)


def summarize(outcome: Outcome) -> Summary:
    """The summary of an outcome."""
    plan, orders = outcome.plan, outcome.orders
    refused = {refusal.invoice for refusal in outcome.refusals}
    accepted = [invoice for invoice in outcome.chosen if invoice.number not in refused]
    lines_skipped, invoices_skipped = plan.skipped_lines.copy(), plan.skipped_invoices.copy()
    chosen = {invoice.number for invoice in outcome.chosen}
    for invoice in plan.invoices:
        if invoice.number in chosen and invoice.number not in refused:
            continue
        why = InvoiceReason.refused_by_service if invoice.number in refused else InvoiceReason.beyond_limit
        invoices_skipped[why] += 1
        lines_skipped[REASON_OF_LINES[why]] += len(invoice.products)

    before = outcome.newest_before
    placed_before = sum(before is not None and order.placed_at <= before for order in orders.values())
    placed_now = len(orders) - placed_before
    confirmed = sorted(_seconds(order) for order in orders.values() if order.status == "confirmed")
    moved = sum(order.cents for order in orders.values() if order.status in _MOVED)
    return Summary(
        data_set=plan.tag,
        lines_read=plan.lines_read,
        lines_in_orders=sum(len(invoice.products) for invoice in accepted),
        lines_skipped=_sorted(lines_skipped),
        invoices_read=plan.invoices_read,
        orders_placed_now=placed_now,
        orders_placed_before=placed_before,
        invoices_skipped=_sorted(invoices_skipped),
        orders_by_status=_sorted(Counter(order.status for order in orders.values())),
        credits_of_invoices=credits_of(sum(invoice.cents for invoice in accepted)),
        credits_moved=credits_of(moved),
        confirmed_p50_seconds=_percentile(confirmed, 50),
        confirmed_p95_seconds=_percentile(confirmed, 95),
        duration_seconds=round(outcome.seconds, 3),
        placing_seconds=round(outcome.placing_seconds, 3),
        orders_per_second=round(placed_now / outcome.placing_seconds, 1) if outcome.placing_seconds else 0.0,
        checks=_checks(outcome, accepted, moved),
    )


def _checks(outcome: Outcome, accepted: Sequence[Invoice], moved: int) -> dict[str, bool]:
    books, orders = outcome.books, outcome.orders
    totals_agree = all(
        invoice.number in orders and orders[invoice.number].cents == invoice.cents for invoice in accepted
    )
    checks = {
        "no_invoice_refused": not outcome.refusals,
        "every_accepted_invoice_is_one_order": totals_agree and len(orders) == len(accepted),
        "every_order_final": all(order.is_settled for order in orders.values()),
        "credits_moved_equal_totals_of_accepted_invoices": moved == sum(i.cents for i in accepted),
        "sum_of_entries_zero": Decimal(books["entries_sum"]) == 0,
        "no_negative_stock": books["negative_stock"] == 0,
        "books_balanced": bool(books["balanced"]),
    }
    if len(outcome.chosen) == len(outcome.plan.invoices):
        # With a limit, the account may hold more, from an earlier run that placed more invoices.
        checks["seller_account_equals_credits_moved"] = outcome.seller_received == moved
    return checks


def print_table(summary: Summary, console: Console) -> None:
    """Print the summary as a table."""
    table = Table("", "", "", title=f"Replay of data set {summary.data_set}", show_header=False)
    for title, rows in _sections(summary):
        for place, (name, value) in enumerate(rows):
            table.add_row("" if place else title, name, value)
        table.add_section()
    console.print(table)


def _sections(summary: Summary) -> list[tuple[str, list[tuple[str, str]]]]:
    lines = [("read", f"{summary.lines_read:,}"), ("in orders", f"{summary.lines_in_orders:,}")]
    invoices = [
        ("read", f"{summary.invoices_read:,}"),
        ("placed now", f"{summary.orders_placed_now:,}"),
        ("placed before", f"{summary.orders_placed_before:,}"),
    ]
    times = [
        ("accepted to confirmed, p50", _shown(summary.confirmed_p50_seconds)),
        ("accepted to confirmed, p95", _shown(summary.confirmed_p95_seconds)),
        ("placing", f"{_shown(summary.placing_seconds)}, {summary.orders_per_second:,.1f} orders/s"),
        ("everything", _shown(summary.duration_seconds)),
    ]
    return [
        ("lines", [*lines, *_skipped(summary.lines_skipped)]),
        ("invoices", [*invoices, *_skipped(summary.invoices_skipped)]),
        ("orders", [(name, f"{number:,}") for name, number in summary.orders_by_status.items()]),
        ("credits", [("of accepted invoices", summary.credits_of_invoices), ("moved", summary.credits_moved)]),
        ("time", times),
        ("checks", [(_words(name), _verdict(held)) for name, held in summary.checks.items()]),
    ]


def _skipped(reasons: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(f"skipped: {_words(reason)}", f"{number:,}") for reason, number in reasons.items()]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _verdict(held: bool) -> str:
    return "[green]true" if held else "[bold red]FALSE"


def _sorted(counts: Mapping[Any, int]) -> dict[str, int]:
    return {str(name): counts[name] for name in sorted(counts, key=lambda name: (-counts[name], name))}


def _seconds(order: PlacedOrder) -> float:
    return (order.updated_at - order.placed_at).total_seconds()


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    """The nearest-rank percentile: the smallest value that at least `percent` of all do not exceed."""
    return round(ordered[ceil(percent / 100 * len(ordered)) - 1], 3) if ordered else None


def _shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:,.3f} s"
