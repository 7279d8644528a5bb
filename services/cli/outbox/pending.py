"""Single events: why one is waiting, which are deferred, and how to cancel one of those."""

from typing import Annotated
from uuid import UUID

import typer

from services.cli.console import plain_errors, say
from services.cli.run import Actor, AsJson, Reason, ago, in_one, show_json, show_table, who
from services.outbox.control import service as control
from services.outbox.control import why as reasons
from services.outbox.control.service import By
from services.query import PageQuery


def why(
    what: Annotated[
        str, typer.Argument(help="An event's id or position, or an aggregate (`order/ID` or only its id).")
    ],
    as_json: AsJson = False,
) -> None:
    """Explain why an event, or each event of an aggregate, is waiting: what blocks it, the error, and since when."""
    with plain_errors():
        found = in_one(lambda uow: reasons.of_any(uow, what))
        if as_json:
            show_json(found)
            return
        for one in found:
            say(f"{one.position}  {one.type} of {one.aggregate}: {one.because}")
            if one.since is not None:
                say(f"    since {one.since:%Y-%m-%d %H:%M:%S} UTC ({ago(one.since)})")
            for event in (one, one.blocker):
                if event is not None and event.error:
                    say(f"    the error of {event.position} ({event.type}): {event.error}")


def deferred(
    event_type: Annotated[str | None, typer.Option("--type", help="Only events of this type.")] = None,
    aggregate: Annotated[str | None, typer.Option(help="Only events of this aggregate.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    cursor: Annotated[str | None, typer.Option(help="Continue after the page that printed this cursor.")] = None,
    as_json: AsJson = False,
) -> None:
    """List events that were deferred when they were written."""
    wanted = {"type": event_type, "aggregate": aggregate}
    filters = [f"{name}:eq:{value}" for name, value in wanted.items() if value is not None]
    with plain_errors():
        page = in_one(lambda uow: uow.control.deferred(PageQuery(filters, limit=limit, cursor=cursor)))
        if as_json:
            fields = ("position", "event_id", "aggregate", "type", "available_at")
            data = [{name: getattr(row, name) for name in fields} for row in page.data]
            show_json({"data": data, "next_cursor": page.next_cursor})
            return
        show_table(
            ["position", "event", "type", "aggregate", "available"],
            ([row.position, row.event_id, row.type, row.aggregate, ago(row.available_at)] for row in page.data),
        )
        if page.next_cursor:
            say(f"More with --cursor {page.next_cursor}")


def cancel(
    event_id: Annotated[UUID, typer.Argument(help="The event's id.")], actor: Actor = None, reason: Reason = ""
) -> None:
    """Cancel a deferred event that no worker has tried yet."""
    with plain_errors():
        in_one(lambda uow: control.cancel_or_refuse(uow, event_id, By(who(actor), reason)))
    say(f"Event {event_id} is cancelled.")
