"""Bulk actions: start them, follow them, and cancel them. Workers carry them out."""

from collections.abc import Callable
from typing import Annotated
from uuid import UUID

import typer

from services.cli.console import INTERRUPTED, CommandError, plain_errors, say
from services.cli.outbox.selecting import DiedBefore, DiedFrom, FailedBecause, Fingerprint, OfAggregate, OfType
from services.cli.progress import Display, open_display
from services.cli.run import (
    Actor,
    AsJson,
    Cursor,
    Yes,
    ago,
    confirm,
    in_one,
    show_json,
    show_more,
    show_table,
    utc,
    watched,
    who,
)
from services.outbox.bulk import service
from services.outbox.bulk.models import BulkAction, BulkKind, BulkState
from services.outbox.bulk.repository import BULK_ACTIONS
from services.outbox.bulk.schemas import BulkFilter, Preview
from services.outbox.control.schemas import By
from services.outbox.models import Waits
from services.query import PageQuery
from services.totals import Precision, Total

bulk = typer.Typer(
    help="Replay, discard, retry or bury all events that match. Workers do it in chunks; it survives restarts.",
    no_args_is_help=True,
)

_LOOK = 0.5
"""Seconds between two looks at the progress."""

OfWaits = Annotated[
    Waits | None,
    typer.Option("--waits", help="Only events that wait for this: retry, unknown or asked. Default: retry or unknown."),
]
All = Annotated[bool, typer.Option("--all", help="Select all of them: without a filter, this is required.")]
Why = Annotated[str, typer.Option("--reason", help="Why, for the audit trail. Required.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show about how many match and the first ones; change nothing.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Show the progress until it has ended. Ctrl-C leaves it running.")]
ActionId = Annotated[UUID, typer.Argument(help="The id of the bulk action.")]


def _of_letters(kind: BulkKind) -> Callable[..., None]:
    """The command that acts so on dead letters."""

    def act(
        event_type: OfType = None,
        aggregate: OfAggregate = None,
        fingerprint: Fingerprint = None,
        died_from: DiedFrom = None,
        died_before: DiedBefore = None,
        failure_reason: FailedBecause = None,
        everything: All = False,
        dry_run: DryRun = False,
        wait: Wait = False,
        yes: Yes = False,
        actor: Actor = None,
        reason: Why = "",
        as_json: AsJson = False,
    ) -> None:
        wanted = BulkFilter(
            event_type, aggregate, fingerprint, utc(died_from), utc(died_before), failure_reason=failure_reason
        )
        _Wanted(kind, wanted, everything, By(who(actor), reason)).act(dry_run, wait, yes, as_json)

    return act


def _of_waiting(kind: BulkKind) -> Callable[..., None]:
    """The command that acts so on waiting events."""

    def act(
        event_type: OfType = None,
        aggregate: OfAggregate = None,
        fingerprint: Fingerprint = None,
        waits: OfWaits = None,
        everything: All = False,
        dry_run: DryRun = False,
        wait: Wait = False,
        yes: Yes = False,
        actor: Actor = None,
        reason: Why = "",
        as_json: AsJson = False,
    ) -> None:
        wanted = BulkFilter(event_type, aggregate, fingerprint, waits=waits)
        _Wanted(kind, wanted, everything, By(who(actor), reason)).act(dry_run, wait, yes, as_json)

    return act


bulk.command("replay", help="Put all dead letters that match back into the outbox, at their old positions.")(
    _of_letters(BulkKind.replay)
)
bulk.command(
    "discard",
    help="Discard all dead letters that match, permanently. An order whose order.placed is discarded is cancelled.",
)(_of_letters(BulkKind.discard))
bulk.command("retry-now", help="Make all waiting events that match due now.")(_of_waiting(BulkKind.retry_now))
bulk.command(
    "bury", help="Turn all waiting events that match into dead letters; later events of their aggregates wait."
)(_of_waiting(BulkKind.bury))


@bulk.command("list")
def list_actions(
    state: Annotated[BulkState | None, typer.Option(help="Only actions in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """List bulk actions with their progress, newest first."""
    filters = [] if state is None else [f"state:eq:{state.value}"]
    with plain_errors():
        page = in_one(lambda uow: uow.bulk.list_page(BULK_ACTIONS, PageQuery(filters, limit=limit, cursor=cursor)))
        if as_json:
            show_json({"data": [_shown(one) for one in page.data], "next_cursor": page.next_cursor})
            return
        show_table(
            ["id", "action", "filter", "started", "by", "state", "done", "failed", "of", "reason"],
            map(_line, page.data),
        )
        show_more(page.next_cursor)


@bulk.command("show")
def show(action_id: ActionId, as_json: AsJson = False) -> None:
    """Show a bulk action and its progress."""
    with plain_errors():
        action = in_one(lambda uow: service.get(uow, action_id))
        _tell(action, as_json=as_json)


@bulk.command("wait")
def wait_for(action_id: ActionId, as_json: AsJson = False) -> None:
    """Show the progress of a bulk action until it has ended. Ctrl-C leaves it running."""
    with plain_errors():
        _end(_followed(action_id, quiet=as_json), as_json=as_json)


@bulk.command("cancel")
def cancel(action_id: ActionId, actor: Actor = None, reason: Why = "", as_json: AsJson = False) -> None:
    """End a bulk action where it is. What it has done so far stays."""
    with plain_errors():
        action = in_one(lambda uow: service.cancel(uow, action_id, By(who(actor), reason)))
        _tell(action, as_json=as_json)


class _Wanted:
    """A bulk action that is previewed, confirmed and started."""

    def __init__(self, kind: BulkKind, wanted: BulkFilter, everything: bool, by: By) -> None:
        self._kind, self._filter, self._everything, self._by = kind, wanted, everything, by

    def act(self, dry_run: bool, wait: bool, yes: bool, as_json: bool) -> None:
        with plain_errors():
            if not self._filter.given and not self._everything:
                raise CommandError("give a filter, or --all")
            plan = in_one(lambda uow: service.preview(uow, self._kind, self._filter, everything=self._everything))
            if dry_run:
                _show_plan(self._kind, plan, as_json)
                return
            if plan.total == Total(value=0, precision=Precision.exact):
                raise CommandError("no event matches")
            if not self._by.reason.strip():
                raise CommandError("a bulk action requires --reason")
            confirm(f"{self._kind.value} {_number(plan.total)}?", yes=yes)
            action = in_one(
                lambda uow: service.start(uow, self._kind, self._filter, self._by, everything=self._everything)
            )
            if wait:
                _end(_followed(action.id, quiet=as_json), as_json=as_json)
                return
            if as_json:
                show_json(_shown(action))
            else:
                say(f"Bulk action {action.id} is started. Follow it with `waybill outbox bulk wait {action.id}`.")


def _followed(action_id: UUID, *, quiet: bool) -> BulkAction:
    """The action once it has ended. Raises `typer.Exit` after Ctrl-C, and leaves the action running."""
    with open_display(quiet=quiet) as display:
        progress = _Progress(display)
        try:
            if not quiet:
                typer.echo(f"Bulk action {action_id}; Ctrl-C leaves it running.", err=True)
            return watched(lambda uow: service.get(uow, action_id), until=progress.shows, every=_LOOK)
        except KeyboardInterrupt:
            typer.echo(
                f"Bulk action {action_id} continues without this command; "
                f"`waybill outbox bulk cancel {action_id}` ends it.",
                err=True,
            )
            raise typer.Exit(INTERRUPTED) from None


class _Progress:
    """Moves the bar to where the action is."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._advance: Callable[[int], None] | None = None
        self._shown = 0

    def shows(self, action: BulkAction) -> bool:
        """Show the progress; returns whether the action has ended."""
        ended = not action.state.is_active
        dealt = action.done + action.failed + action.skipped
        if self._advance is None:
            self._advance = self._display.phase(action.action.value, max(action.estimate, dealt))
        # The estimate may be too low.
        step = dealt - self._shown if ended else min(dealt, max(action.estimate - 1, 0)) - self._shown
        if step > 0:
            self._advance(step)
            self._shown += step
        return ended


def _end(action: BulkAction, *, as_json: bool) -> None:
    """Print how it ended, and exit with 1 unless everything was done."""
    _tell(action, as_json=as_json)
    if action.state is BulkState.cancelled or action.failed:
        raise typer.Exit(1)


def _tell(action: BulkAction, *, as_json: bool) -> None:
    if as_json:
        show_json(_shown(action))
        return
    counts = f"{action.done:,} done, {action.failed:,} failed, {action.skipped:,} skipped"
    said = f"{action.action.value}: {action.state.value}, {counts}"
    if action.state.is_active:
        said += f", of {_number(Total(value=action.estimate, precision=action.precision))}"
    say(f"{said}.")
    if action.error is not None:
        say(f"The latest error: {action.error}")


def _show_plan(kind: BulkKind, plan: Preview, as_json: bool) -> None:
    if as_json:
        show_json(plan)
        return
    say(f"Would {kind.value} {_number(plan.total)}" + (", the first:" if plan.sample else "."))
    if plan.sample:
        show_table(
            ["position", "event", "type", "aggregate", "kind", "error"],
            (
                [one.position, one.event_id, one.type, one.aggregate, one.fingerprint, one.message]
                for one in plan.sample
            ),
        )


def _number(total: Total) -> str:
    about = "" if total.precision is Precision.exact else "about "
    return f"{about}{total.value:,} {'event' if total.value == 1 else 'events'}"


def _shown(action: BulkAction) -> dict[str, object]:
    hidden = {"acting", "user_id", "after_position", "after_aggregate", "last_position", "last_aggregate"}
    return action.model_dump(mode="json", exclude=hidden)


def _line(action: BulkAction) -> list[object]:
    about = "" if action.precision is Precision.exact else "~"
    return [
        action.id,
        action.action.value,
        ", ".join(f"{name}={value}" for name, value in action.filter.items()) or "all",
        ago(action.created_at),
        action.actor,
        action.state.value,
        f"{action.done:,}",
        f"{action.failed:,}",
        f"{about}{action.estimate:,}",
        action.reason,
    ]
