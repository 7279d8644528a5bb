"""Event types: the backlog of each, and the controls that operators have set."""

from typing import Annotated

import typer

from services.cli.console import plain_errors, say
from services.cli.outbox.catalogue import as_markdown, event_types
from services.cli.run import (
    Actor,
    AsJson,
    Reason,
    ago,
    counted,
    in_one,
    lasting,
    show_json,
    show_table,
    who,
    with_dry_run,
)
from services.operations import service as operations
from services.outbox.control import service as control
from services.outbox.control.schemas import By, TypeState

Type = Annotated[str, typer.Argument(help="The event type, such as `order.placed`.", max=100)]


def status(as_json: AsJson = False) -> None:
    """Count the events that are waiting, being retried or dead, up to 10,000 of each."""
    with plain_errors():
        backlog = in_one(operations.backlog)
        if as_json:
            show_json(backlog)
            return
        show_table(
            ["waiting", "retrying", "oldest due", "dead letters"],
            [
                [
                    _at_least(backlog.waiting, backlog.waiting_is_more),
                    _at_least(backlog.retrying, backlog.retrying_is_more),
                    lasting(backlog.oldest_due_seconds),
                    _at_least(backlog.dead_letters, backlog.dead_letters_is_more),
                ]
            ],
        )


def types(
    as_json: AsJson = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the fields of each type, as in docs/reference/events.md.")
    ] = False,
) -> None:
    """List the event types: ready, waiting, oldest, dead, paused, limit, and the live workers that handle each."""
    if markdown:
        typer.echo(as_markdown(), nl=False)
        return
    with plain_errors():
        found = in_one(control.types)
        if as_json:
            show_json(found)
            return
        show_table(
            ["type", "ready", "waiting", "why", "oldest ready", "dead", "state", "limit", "workers"], map(_line, found)
        )


@with_dry_run
def pause(event_type: Type, actor: Actor = None, reason: Reason = "") -> None:
    """Stop claiming events of this type. Running batches finish."""
    with plain_errors():
        _know_all_types()
        in_one(lambda uow: control.pause(uow, event_type, By(who(actor), reason)))
    say(f"{event_type} is paused.")


@with_dry_run
def resume(event_type: Type, actor: Actor = None, reason: Reason = "") -> None:
    """Start claiming events of this type again."""
    with plain_errors():
        _know_all_types()
        in_one(lambda uow: control.pause(uow, event_type, By(who(actor), reason), paused=False))
    say(f"{event_type} is not paused.")


@with_dry_run
def limit(
    event_type: Type,
    batches: Annotated[int, typer.Argument(min=0, max=1000, help="The most concurrent batches; 0 means no limit.")],
    actor: Actor = None,
    reason: Reason = "",
) -> None:
    """Limit the number of batches of this type that run at the same time, across all workers."""
    with plain_errors():
        _know_all_types()
        in_one(lambda uow: control.limit(uow, event_type, batches or None, By(who(actor), reason)))
    most = f"at most {counted(batches, 'concurrent batch', 'concurrent batches')}" if batches else "no limit"
    say(f"{event_type}: {most}.")


def _know_all_types() -> None:
    # So that a type is accepted even if no event of it has been written and no worker is running.
    event_types()


def _at_least(number: int, is_more: bool) -> str:
    return f"{number} or more" if is_more else str(number)


def _line(one: TypeState) -> list[object]:
    state = f"paused {ago(one.changed_at)} by {one.changed_by}" if one.paused else "running"
    return [
        one.type,
        f"{one.ready}+" if one.ready_is_more else one.ready,
        f"{one.waiting}+" if one.waiting_is_more else one.waiting,
        ", ".join(f"{number} {reason}" for reason, number in one.reasons.items()),
        lasting(one.oldest_ready_seconds),
        f"{one.dead_letters}+" if one.dead_letters_is_more else one.dead_letters,
        state,
        one.max_batches,
        one.workers,
    ]
