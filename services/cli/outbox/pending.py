"""Single events: why one is waiting, which are deferred, and how to cancel one of those."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated
from uuid import UUID

import typer

from services.cli.console import CommandError, plain_errors, say
from services.cli.run import (
    Actor,
    AsJson,
    Cursor,
    Reason,
    ago,
    in_one,
    show_json,
    show_more,
    show_table,
    who,
    with_dry_run,
)
from services.fields import MAX_BIGINT
from services.outbox.control import service as control
from services.outbox.control import why as reasons
from services.outbox.control.schemas import By
from services.query import PageQuery
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork

What = Annotated[str, typer.Argument(help="The event's position or id.")]


def why(
    what: Annotated[
        str, typer.Argument(help="An event's id or position, or an aggregate (`order/ID` or only its id).")
    ],
    as_json: AsJson = False,
) -> None:
    """Explain why an event, or each event of an aggregate, is waiting: what blocks it, the error, and since when."""
    with plain_errors():
        found = in_one(lambda uow: reasons.of_any(uow, what, SUBSCRIPTIONS))
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
    cursor: Cursor = None,
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
        show_more(page.next_cursor)


@with_dry_run
def cancel(
    event_id: Annotated[UUID, typer.Argument(help="The event's id.")], actor: Actor = None, reason: Reason = ""
) -> None:
    """Cancel a deferred event that no worker has tried yet."""
    with plain_errors():
        in_one(lambda uow: control.cancel_or_refuse(uow, event_id, By(who(actor), reason), SUBSCRIPTIONS))
    say(f"Event {event_id} is cancelled.")


@with_dry_run
def retry_now(what: What, actor: Actor = None, reason: Reason = "") -> None:
    """Make a waiting event due now: one that failed, that no worker knew, or that was deferred."""
    _act(control.retry_now, what, By(who(actor), reason))
    say(f"Event {what} is due now.")


@with_dry_run
def bury(what: What, actor: Actor = None, reason: Reason = "") -> None:
    """Turn a waiting event into a dead letter; later events of its aggregate wait for its replay or discard."""
    _act(control.bury_waiting, what, By(who(actor), reason))
    say(f"Event {what} is a dead letter.")


def discard_waiting(what: str, by: By) -> None:
    """Discard a waiting event permanently."""
    _act(partial(control.discard_waiting, subscriptions=SUBSCRIPTIONS), what, by)
    say(f"Event {what} is discarded.")


def _act(act: Callable[[UnitOfWork, int, By], Awaitable[None]], what: str, by: By) -> None:
    async def work(uow: UnitOfWork) -> None:
        await act(uow, await _position(uow, what), by)

    with plain_errors():
        in_one(work)


async def _position(uow: UnitOfWork, what: str) -> int:
    if what.isascii() and what.isdecimal() and len(what) < 20 and 0 < int(what) <= MAX_BIGINT:
        return int(what)
    try:
        event_id = UUID(what)
    except ValueError as error:
        raise CommandError(f"{what!r} is not a position or an event id") from error
    return await control.position_of(uow, event_id)
