"""Dead letters: inspect, replay and discard them."""

from collections.abc import Awaitable, Iterator
from functools import partial
from typing import Annotated, Any, Protocol
from uuid import UUID

import typer

from services.cli.console import CommandError, plain_errors, say
from services.cli.outbox.pending import discard_waiting
from services.cli.outbox.selecting import DiedBefore, DiedFrom, FailedBecause, Fingerprint, OfAggregate, OfType
from services.cli.run import (
    Actor,
    AsJson,
    Reason,
    Work,
    Yes,
    ago,
    confirm,
    counted,
    in_one,
    in_several,
    show_json,
    show_table,
    utc,
    who,
)
from services.fields import MAX_BIGINT
from services.outbox.control import service as control
from services.outbox.control.schemas import By, Selection, Slice
from services.outbox.models import DeadLetter, EventRow
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork

Position = Annotated[int | None, typer.Argument(min=1, max=MAX_BIGINT, help="Only the dead letter at this position.")]
EventId = Annotated[UUID | None, typer.Option("--event", help="Only the dead letter of this event id.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show how many match and which; change nothing.")]


class Act(Protocol):
    """`control.replay` or `control.discard`."""

    def __call__(
        self, work: UnitOfWork, selection: Selection, by: By, *, after: int = 0, dry_run: bool = False
    ) -> Awaitable[Slice]: ...


def list_letters(
    event_type: OfType = None,
    aggregate: OfAggregate = None,
    fingerprint: Fingerprint = None,
    failure_reason: FailedBecause = None,
    died_from: DiedFrom = None,
    died_before: DiedBefore = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    after: Annotated[int, typer.Option(min=0, max=MAX_BIGINT, help="Continue after this position.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List dead letters, oldest position first."""
    wanted = Selection(None, None, event_type, aggregate, fingerprint, utc(died_from), utc(died_before), failure_reason)
    with plain_errors():
        heads = in_one(lambda uow: control.heads(uow, wanted, after, limit))
        if as_json:
            show_json(heads)
            return
        show_table(
            ["position", "event", "type", "aggregate", "kind", "died", "error"],
            (
                [one.position, one.event_id, one.type, one.aggregate, one.fingerprint, ago(one.died_at), one.message]
                for one in heads
            ),
        )
        if len(heads) == limit:
            say(f"More with --after {heads[-1].position}")


def show(
    position: Annotated[int, typer.Argument(min=1, max=MAX_BIGINT, help="Its position.")], as_json: AsJson = False
) -> None:
    """Show a dead letter with its full error, history and payload."""
    with plain_errors():
        found = in_one(lambda uow: uow.control.dead_letter(position))
        if found is None:
            raise CommandError(f"there is no dead letter {position}")
        shown = _whole(*found)
        if as_json:
            show_json(shown)
            return
        for name in (
            "position",
            "event_id",
            "type",
            "version",
            "aggregate",
            "attempts",
            "fingerprint",
            "reason",
            "blocks",
            "died_at",
            "occurred_at",
            "request_id",
            "actor",
            "payload",
            "message",
        ):
            say(f"{name:12} {shown[name]}")
        say("history")
        for failure in shown["failures"]:
            say(f"  {failure['at']}  attempt {failure['attempt']}: {failure['error']}")
        say(shown["error"])


def replay(
    position: Position = None,
    event_id: EventId = None,
    event_type: OfType = None,
    aggregate: OfAggregate = None,
    fingerprint: Fingerprint = None,
    failure_reason: FailedBecause = None,
    died_from: DiedFrom = None,
    died_before: DiedBefore = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    actor: Actor = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Put dead letters back into the outbox, at their old positions and with their attempts reset to zero."""
    wanted = Selection(
        position, event_id, event_type, aggregate, fingerprint, utc(died_from), utc(died_before), failure_reason
    )
    _act("replay", control.replay, wanted, By(who(actor), reason), dry_run, yes, as_json)


def discard(
    position: Position = None,
    event_id: EventId = None,
    event_type: OfType = None,
    aggregate: OfAggregate = None,
    fingerprint: Fingerprint = None,
    failure_reason: FailedBecause = None,
    died_from: DiedFrom = None,
    died_before: DiedBefore = None,
    waiting: Annotated[
        bool,
        typer.Option("--waiting", help="Discard an event that waits, not a dead letter: by POSITION or --event."),
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    actor: Actor = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Discard dead letters permanently; events that waited behind them can proceed. Requires --reason.

    An order whose order.placed is discarded is cancelled, and its hold is released.
    """
    wanted = Selection(
        position, event_id, event_type, aggregate, fingerprint, utc(died_from), utc(died_before), failure_reason
    )
    if waiting:
        _discard_waiting(wanted, By(who(actor), reason), dry_run, yes)
        return
    _act(
        "discard",
        partial(control.discard, subscriptions=SUBSCRIPTIONS),
        wanted,
        By(who(actor), reason),
        dry_run,
        yes,
        as_json,
    )


def _discard_waiting(wanted: Selection, by: By, dry_run: bool, yes: bool) -> None:
    what = wanted.position or wanted.event_id
    if what is None or wanted not in (Selection(position=wanted.position), Selection(event_id=wanted.event_id)):
        raise typer.BadParameter("--waiting takes either POSITION or --event, and no other filter")
    if dry_run:
        raise typer.BadParameter("--waiting has no dry run; use `waybill outbox why`")
    confirm(f"discard the event {what}?", yes=yes)
    discard_waiting(str(what), by)


def _act(name: str, act: Act, wanted: Selection, by: By, dry_run: bool, yes: bool, as_json: bool) -> None:
    with plain_errors():
        plan = in_one(lambda uow: act(uow, wanted, by, dry_run=True))
        if plan.matching == 0:
            raise CommandError("no dead letter matches")
        if dry_run:
            _show_plan(name, plan, as_json)
            return
        confirm(f"{name} {_matching(plan)}?", yes=yes)
        done = sum(one.done for one in in_several(_Slices(act, wanted, by)))
    if as_json:
        show_json({"done": done})
    else:
        say(f"{name}: {counted(done, 'dead letter')}.")


class _Slices:
    """One transaction after another until nothing is left; each continues where the previous one ended."""

    def __init__(self, act: Act, wanted: Selection, by: By) -> None:
        self._act, self._wanted, self._by = act, wanted, by
        self._latest: Slice | None = None

    def __iter__(self) -> Iterator[Work[Slice]]:
        while self._latest is None or self._latest.more:
            yield self._next

    async def _next(self, uow: UnitOfWork) -> Slice:
        # Positions only rise: a letter that dies again in the meantime is not taken twice.
        after = 0 if self._latest is None else self._latest.last
        done = await self._act(uow, self._wanted, self._by, after=after)
        self._latest = done
        return done


def _matching(plan: Slice) -> str:
    return ("more than " if plan.matching_is_more else "") + counted(plan.matching, "dead letter")


def _show_plan(name: str, plan: Slice, as_json: bool) -> None:
    if as_json:
        show_json(plan)
        return
    say(f"Would {name} {_matching(plan)}" + (f", the first {plan.done}:" if plan.more else ":"))
    show_table(
        ["position", "event", "type", "aggregate", "error"],
        ([letter.position, letter.event_id, letter.type, letter.aggregate, letter.message] for letter in plan.letters),
    )


def _whole(letter: DeadLetter, event: EventRow | None) -> dict[str, Any]:
    of_letter = (
        "position",
        "event_id",
        "type",
        "aggregate",
        "attempts",
        "fingerprint",
        "reason",
        "blocks",
        "died_at",
        "failures",
    )
    of_event = ("version", "occurred_at", "request_id", "actor", "payload")
    return {
        **{name: getattr(letter, name) for name in of_letter},
        **{name: None if event is None else getattr(event, name) for name in of_event},
        "message": control.last_line(letter.error),
        "error": letter.error,
    }
