"""`waybill orders-by-day`: what happened to orders on each of the last days."""

from typing import Annotated

import typer

from services.cli.console import plain_errors
from services.cli.run import AsJson, in_one, show_json, show_table
from services.orders.days import service
from services.orders.days.schemas import OrderDayPublic


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
