"""What waits and what failed: the groups of dead letters, and the events of a type by why they wait."""

from collections.abc import Sequence
from typing import Annotated

import typer

from services.cli.console import plain_errors
from services.cli.outbox.selecting import FailedBecause
from services.cli.run import AsJson, Cursor, ago, in_one, show_json, show_more, show_table
from services.outbox.inspection import service as inspection
from services.outbox.inspection.schemas import Group, GroupsWanted, WaitsFor, Window

_BARS = " ▁▂▃▄▅▆▇█"


def groups(
    event_type: Annotated[
        str | None, typer.Option("--type", help="Only groups whose latest dead letter has this event type.")
    ] = None,
    failure_reason: FailedBecause = None,
    window: Annotated[Window, typer.Option(help="How far back the history goes.")] = Window.day,
    limit: Annotated[int, typer.Option(min=1, max=50)] = 20,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """Group dead letters by kind of error; the group that grew last comes first. `+` means that there are more."""
    wanted = GroupsWanted(event_type, failure_reason, window)
    with plain_errors():
        page = in_one(lambda uow: inspection.groups(uow, wanted, limit, cursor))
        if as_json:
            show_json(page.shown(lambda one: one))
            return
        headings = ["kind", "letters", f"last {window}", "aggregates", "first", "last", "type", "reason"]
        show_table([*headings, "latest error"], map(_line, page.data))
        show_more(page.next_cursor)


def waiting(
    event_type: Annotated[str, typer.Argument(help="The event type, such as `order.placed`.")],
    reason: Annotated[WaitsFor, typer.Option(help="Why they wait.")] = WaitsFor.retry,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """List the events of a type that wait for a reason; `waybill outbox types` counts them."""
    with plain_errors():
        page = in_one(lambda uow: inspection.waiting(uow, event_type, reason, limit, cursor))
        if as_json:
            show_json(page.shown(lambda one: one))
            return
        show_table(
            ["position", "event", "aggregate", "due", "attempts", "failed", "error"],
            (
                [
                    one.position,
                    one.event_id,
                    one.aggregate,
                    "" if one.until is None else ago(one.until),
                    one.attempts,
                    ago(one.failed_at),
                    one.message,
                ]
                for one in page.data
            ),
        )
        show_more(page.next_cursor)


def spark(counts: Sequence[int]) -> str:
    """The counts as a line of bars. Every count above zero shows."""
    highest = max(counts, default=0)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // highest)] if count else _BARS[0] for count in counts)


def _line(one: Group) -> list[object]:
    return [
        one.fingerprint,
        f"{one.letters}+" if one.letters_is_more else one.letters,
        spark(one.history.letters),
        one.aggregates,
        ago(one.first_at),
        ago(one.last_at),
        one.type,
        one.reason,
        one.message,
    ]
