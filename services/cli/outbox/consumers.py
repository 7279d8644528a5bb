"""Consumers of the event log: how far behind each is, who runs it, and where it continues."""

from typing import Annotated

import typer

from services.cli.console import plain_errors, say
from services.cli.run import (
    Actor,
    AsJson,
    Reason,
    Yes,
    ago,
    confirm,
    counted,
    in_one,
    lasting,
    show_json,
    show_table,
    who,
    with_dry_run,
)
from services.operations.consumers import service
from services.outbox.control.schemas import By
from services.outbox.log import service as log
from services.outbox.log.schemas import Lag
from services.outbox.log.service import MOST_COUNTED, Start
from services.outbox.origin import service as origin
from services.unit_of_work import UnitOfWork

Consumer = Annotated[str, typer.Argument(help="The consumer's name.", max=100)]


def list_consumers(as_json: AsJson = False) -> None:
    """List the consumers of the event log: the unread events, the age of the oldest of them, and who runs each.

    A consumer is `running`, `waiting` for a worker, `failing` on its next event, `paused`, or `manual` if no worker has
    ever run it.
    """
    with plain_errors():
        found, complaint = in_one(_read)
        if as_json:
            show_json(found)
            return
        if complaint is not None:
            typer.echo(complaint, err=True)
        show_table(["consumer", "unread", "oldest unread", "last advance", "state", "error"], map(_line, found))


@with_dry_run
def reset(
    consumer: Consumer,
    to: Annotated[Start, typer.Option(help="Continue at the oldest event of the log, or with the next new one.")],
    yes: Yes = False,
    actor: Actor = None,
    reason: Reason = "",
) -> None:
    """Move a consumer to the beginning of the log, or to now."""
    again = "reads all events again" if to is Start.beginning else "skips its unread events"
    confirm(f"reset {consumer}, which then {again}?", yes=yes)
    with plain_errors():
        in_one(lambda uow: service.reset(uow, consumer, to, By(who(actor), reason)))
    say(f"Consumer {consumer} continues at {'the beginning of the log' if to is Start.beginning else 'now'}.")


@with_dry_run
def pause(consumer: Consumer, actor: Actor = None, reason: Reason = "") -> None:
    """Stop running a consumer in workers. A batch that is under way is rolled back."""
    with plain_errors():
        in_one(lambda uow: service.pause(uow, consumer, By(who(actor), reason)))
    say(f"Consumer {consumer} is paused.")


@with_dry_run
def resume(consumer: Consumer, actor: Actor = None, reason: Reason = "") -> None:
    """Run a consumer in workers again, immediately even if it waits after a failure."""
    with plain_errors():
        in_one(lambda uow: service.resume(uow, consumer, By(who(actor), reason)))
    say(f"Consumer {consumer} is not paused.")


@with_dry_run
def delete(consumer: Consumer, yes: Yes = False, actor: Actor = None, reason: Reason = "") -> None:
    """Delete a consumer: the log no longer keeps events for it."""
    confirm(f"delete {consumer}?", yes=yes)
    with plain_errors():
        in_one(lambda uow: service.delete(uow, consumer, By(who(actor), reason)))
    say(f"Consumer {consumer} is deleted.")


async def _read(uow: UnitOfWork) -> tuple[list[Lag], str | None]:
    return await log.lags(uow), await origin.complaint_of_reads(await uow.session.connection())


def _line(one: Lag) -> list[object]:
    unread = f"{one.events} or more" if one.events >= MOST_COUNTED else one.events
    state = one.state
    if one.state == "running" and one.pid is not None:
        state = f"running on {one.host} {one.pid}"
    elif one.state == "paused":
        state = f"paused {ago(one.paused_at)} by {one.paused_by}"
    elif one.state == "failing":
        state = f"failed {counted(one.failed_in_a_row, 'time')}, next attempt {ago(one.retry_at)}"
    return [one.name, unread, lasting(one.seconds) if one.events else "", ago(one.updated_at), state, one.error]
