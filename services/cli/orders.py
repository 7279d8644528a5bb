"""`waybill orders`: find orders, and what happened to one. `waybill orders-by-day`: the orders of the last days."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer
from pydantic import ValidationError

from services.cli.console import CommandError, plain_errors, say
from services.cli.run import AsJson, in_one, show_json, show_table, utc
from services.orders.days import service
from services.orders.days.schemas import OrderDayPublic
from services.orders.models import OrderStatus
from services.orders.schemas import OrderSummary
from services.orders.search import service as searching
from services.orders.search.schemas import OrderSearch
from services.orders.timeline import service as timelines
from services.orders.timeline.schemas import EACH, Timeline, TimelineEntry
from services.unit_of_work import UnitOfWork

orders = typer.Typer(no_args_is_help=True, help="Find orders, and show what happened to one.")

Since = Annotated[datetime | None, typer.Option(help="Only those placed from this time on (UTC).")]
Until = Annotated[datetime | None, typer.Option(help="Only those placed before this time (UTC).")]


@orders.command("show")
def show(
    what: Annotated[str, typer.Argument(metavar="ORDER", help="The order's id, or its buyer's reference.")],
    as_json: AsJson = False,
) -> None:
    """Show what happened to an order: requests, moves, refunds, credits, stock, events and their failures."""
    with plain_errors():
        found = in_one(lambda uow: _timeline(uow, what))
        if as_json:
            show_json(found)
            return
        order = found.order
        say(f"Order {order.id} is {order.status.value}: {order.total} credits, {order.refunded} refunded.")
        say(f"Its buyer is user {order.buyer.id}, its reference {order.reference or 'none'}.")
        say()
        headings = ["at (UTC)", "kind", "what", "state", "amount", "who", "why", "error", "request"]
        show_table(headings, map(_entry, found.entries))
        if found.cut:
            say(f"Only the first {EACH} of each are shown: {', '.join(found.cut)}.")
        if found.not_found:
            say(f"Not found in the log: {', '.join(found.not_found)}.")


@orders.command("find")
def find(
    order_id: Annotated[UUID | None, typer.Option("--id", help="The order's id.")] = None,
    buyer: Annotated[int | None, typer.Option(min=1, help="The id of the buyer.")] = None,
    email: Annotated[str | None, typer.Option(help="The buyer's e-mail address.")] = None,
    reference: Annotated[str | None, typer.Option(help="The buyer's own name for it.")] = None,
    status: Annotated[list[OrderStatus] | None, typer.Option(help="Only with this status; may be repeated.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="The most orders to show.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Find orders, newest first. All options given must match."""
    with plain_errors():
        try:
            wanted = OrderSearch(
                id=order_id,
                buyer_id=buyer,
                buyer_email=email,
                reference=reference,
                status=status or None,
                placed_from=utc(since),
                placed_before=utc(until),
                limit=limit,
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise CommandError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        found = in_one(lambda uow: searching.find(uow, wanted))
        if as_json:
            show_json(found)
            return
        show_table(["placed (UTC)", "id", "status", "total", "buyer", "reference"], map(_order, found.data))
        if found.has_more:
            say("There may be more. Use --until or --limit, or say more about the order.")


async def _timeline(uow: UnitOfWork, what: str) -> Timeline:
    ids = await searching.identified(uow, what)
    if len(ids) > 1:
        raise CommandError(
            f"several orders have the reference {what!r}; give one of the ids: {', '.join(map(str, ids))}"
        )
    return await timelines.timeline(uow, ids[0], lambda _: True)


def _entry(one: TimelineEntry) -> list[object]:
    at = f"{one.at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]
    return [at, one.kind, one.what, one.state, one.amount, one.actor, one.reason, one.error, one.request_id]


def _order(one: OrderSummary) -> list[object]:
    at = f"{one.created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    return [at, one.id, one.status.value, one.total, one.buyer.id, one.reference]


def orders_by_day(
    days: Annotated[int, typer.Option(min=1, max=366, help="How many days, today (UTC) included.")] = 14,
    as_json: AsJson = False,
) -> None:
    """Show what happened to orders on each of the last days: the number of orders, and the amounts in credits.

    Days without events are left out. Workers count the events within a second or two if they are busy, and within about
    16 s otherwise.
    """
    with plain_errors():
        found = in_one(lambda uow: service.newest(uow, days))
        if as_json:
            show_json(found)
            return
        show_table(["day", *(name.replace("_", " ") for name in service.COUNTED)], map(_line, found))


def _line(one: OrderDayPublic) -> list[object]:
    tallies = [getattr(one, name) for name in service.COUNTED]
    return [one.day, *(f"{tally.orders} ({tally.amount})" if tally.orders else "" for tally in tallies)]
