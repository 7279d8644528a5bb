"""One list of what happened to an order: requests, moves, refunds, credits, stock, events and their failures."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from services.errors import NotFound
from services.orders.events import (
    OrderAwaitingPayment,
    OrderCancelled,
    OrderConfirmed,
    OrderFulfilled,
    OrderPlaced,
    OrderRefunded,
    OrderRejected,
)
from services.orders.models import OrderStatus
from services.orders.repository import WITH_BUYER
from services.orders.schemas import OrderSummary
from services.orders.timeline.schemas import EACH, EntryKind, Expected, FoundEvent, Timeline, TimelineEntry
from services.outbox.control import why
from services.outbox.control.service import last_line
from services.outbox.control.why import Why
from services.outbox.events import Event
from services.sql import Row
from services.unit_of_work import UnitOfWork
from services.users.rights import Scope

OF_STATUS: Mapping[OrderStatus, type[Event]] = {
    OrderStatus.awaiting_payment: OrderAwaitingPayment,
    OrderStatus.pending: OrderPlaced,
    OrderStatus.confirmed: OrderConfirmed,
    OrderStatus.rejected: OrderRejected,
    OrderStatus.cancelled: OrderCancelled,
    OrderStatus.fulfilled: OrderFulfilled,
}
"""The event that a move to each status records."""

QUEUED = frozenset(event.type for event in OF_STATUS.values() if event.queued)
"""The types of events that workers process."""

AROUND = (timedelta(seconds=1), timedelta(seconds=60))
"""How far an event is looked for from the time of what it tells of: first near it, and what was not found further."""

VERBS = ("pay", "cancel", "refunds", "fulfil")

NEEDED: Mapping[EntryKind, Scope] = {
    EntryKind.hold: Scope.credits_read_all,
    EntryKind.entry: Scope.credits_read_all,
    EntryKind.movement: Scope.catalog_read_all,
    EntryKind.failure: Scope.operations_read,
    EntryKind.action: Scope.operations_read,
}
"""What a caller needs, besides reading the order, to see these kinds."""

_RANK = {kind: rank for rank, kind in enumerate(EntryKind)}

_ENDED = {"discard": "discarded", "cancel": "cancelled"}
"""The states of events that operators took out of the outbox, by what they did."""


class _Events(NamedTuple):
    """The order's events, and what is known of those that were not processed yet."""

    found: Sequence[FoundEvent]
    waiting: Mapping[UUID, Why]
    missing: Sequence[str]


async def timeline(uow: UnitOfWork, order_id: UUID, may: Callable[[Scope], bool]) -> Timeline:
    """What happened to the order, as far as someone with these rights sees it. Raises `NotFound`.

    It reads a limited number of rows, whatever the size of the order and of the tables.
    """
    order = await uow.orders.get(order_id, options=(WITH_BUYER,))
    if order is None:
        raise NotFound(f"order {order_id} does not exist")
    hidden = [kind for kind, scope in NEEDED.items() if not may(scope)]
    transitions = await uow.timelines.transitions(order_id)
    refunds = await uow.timelines.refunds(order_id)
    events = await _events(uow, order_id, transitions, refunds)
    callers = await _callers(uow, order.buyer_id, transitions, refunds)
    found = [
        *_requests(await uow.timelines.requests(order_id, order.buyer_id, callers, VERBS), events.found),
        *map(_transition, transitions),
        *map(_refund, refunds),
    ]
    if EntryKind.hold not in hidden:
        found += [entry for row in await uow.timelines.transfers(order_id) for entry in _hold(row)]
        found += map(_entry, await uow.timelines.entries(order_id))
    if EntryKind.movement not in hidden:
        found += map(_movement, await uow.timelines.movements(order_id))
    ids = [event.id for event in events.found]
    actions = await uow.timelines.actions(ids)
    ended = {row["event_id"]: _ENDED[row["action"]] for row in actions if row["action"] in _ENDED}
    shows_errors = EntryKind.failure not in hidden
    found += [_event(event, events.waiting.get(event.id), ended, shows_errors) for event in events.found]
    if shows_errors:
        failures = await uow.timelines.failures([one.position for one in events.waiting.values()])
        found += [_failure(event_id, one) for event_id, each in failures.items() for one in each]
        found += map(_action, actions)
    entries, cut = _sorted(found)
    return Timeline(
        order=OrderSummary.model_validate(order, from_attributes=True),
        entries=entries,
        hidden=hidden,
        cut=cut,
        not_found=list(events.missing),
    )


def _sorted(found: Iterable[TimelineEntry]) -> tuple[list[TimelineEntry], list[EntryKind]]:
    """The first `EACH` entries of each kind, by time and kind; those of the same moment stay as they were found."""
    entries = sorted(found, key=lambda one: (one.at, _RANK[one.kind]))
    number = dict.fromkeys(EntryKind, 0)
    kept = []
    for one in entries:
        number[one.kind] += 1
        if number[one.kind] <= EACH:
            kept.append(one)
    return kept, [kind for kind, count in number.items() if count > EACH]


async def _events(uow: UnitOfWork, order_id: UUID, transitions: Sequence[Row], refunds: Sequence[Row]) -> _Events:
    """Those that wait are known by their aggregate. The others are looked for at the time of what they tell of."""
    aggregate = f"order/{order_id}"
    try:
        waiting = {one.event_id: one for one in await why.of_aggregate(uow, aggregate)}
    except NotFound:
        waiting = {}
    found = {event.id: event for event in await uow.timelines.events(waiting.keys())}
    wanted = [Expected(type=OF_STATUS[OrderStatus(row["to_status"])].type, at=row["created_at"]) for row in transitions]
    wanted += [Expected(type=OrderRefunded.type, at=row["created_at"]) for row in refunds]
    for around in AROUND:
        near = await uow.timelines.events_near(aggregate, _left(wanted, found.values()), around)
        found |= {event.id: event for event in near}
    ordered = sorted(found.values(), key=lambda event: event.id)
    return _Events(ordered, waiting, [one.type for one in _left(wanted, ordered)])


def _left(wanted: Sequence[Expected], found: Iterable[FoundEvent]) -> list[Expected]:
    """What is still to be looked for. If an event of a type is missing, all of that type are looked for again."""
    types = [event.type for event in found]
    missing = {one.type for one in wanted if types.count(one.type) < sum(other.type == one.type for other in wanted)}
    return [one for one in wanted if one.type in missing][:EACH]


async def _callers(uow: UnitOfWork, buyer_id: int, transitions: Sequence[Row], refunds: Sequence[Row]) -> set[int]:
    """The users who did something to the order, themselves or with an API key."""
    actors = {row["actor"] or "" for row in transitions}
    users = {int(actor.removeprefix("user:")) for actor in actors if actor.startswith("user:")}
    keys = [UUID(actor.removeprefix("key:")) for actor in actors if actor.startswith("key:")]
    owners = (await uow.api_keys.owners(keys)).values() if keys else ()
    return {buyer_id, *users, *owners, *(row["requested_by"] for row in refunds)}


def _requests(rows: Sequence[Row], events: Sequence[FoundEvent]) -> Iterator[TimelineEntry]:
    """Requests with a key, and those that only their events tell of.

    A key is stored in the transaction of the events, and both have the time at which that began.
    """
    begun = {event.occurred_at: event for event in reversed(events) if event.request_id is not None}
    known = set()
    for row in rows:
        event = begun.get(row["created_at"])
        if event is not None:
            known.add(event.request_id)
        yield TimelineEntry(
            at=row["created_at"],
            kind=EntryKind.request,
            what=f"{row['method']} {row['path']} with the Idempotency-Key {row['key']}",
            actor=f"user:{row['caller_id']}" if event is None else event.actor,
            state=str(row["status"]),
            request_id=None if event is None else event.request_id,
            traceparent=None if event is None else event.traceparent,
        )
    for event in events:
        if event.request_id is not None and event.request_id not in known:
            known.add(event.request_id)
            yield TimelineEntry(
                at=event.occurred_at,
                kind=EntryKind.request,
                what=f"a request that recorded {event.type}",
                actor=event.actor,
                request_id=event.request_id,
                traceparent=event.traceparent,
            )


def _transition(row: Row) -> TimelineEntry:
    before, after = row["from_status"], row["to_status"]
    return TimelineEntry(
        at=row["created_at"],
        kind=EntryKind.transition,
        what=f"placed as {after}" if before is None else f"{before} to {after}",
        actor=row["actor"],
        reason=row["reason"],
        state=after,
    )


def _refund(row: Row) -> TimelineEntry:
    return TimelineEntry(
        at=row["created_at"],
        kind=EntryKind.refund,
        what=f"{row['pieces']} {'piece' if row['pieces'] == 1 else 'pieces'} refunded",
        subject=f"refund/{row['id']}",
        actor=f"user:{row['requested_by']}",
        reason=row["reason"],
        amount=row["amount"],
    )


def _hold(row: Row) -> Iterator[TimelineEntry]:
    """Credits that were held, and the end of that. A refund was never held: its entries show it."""
    if row["expires_at"] is None:
        return
    between = f"from account/{row['debit_account_id']} for account/{row['credit_account_id']}"
    subject = f"transfer/{row['id']}"
    yield TimelineEntry(
        at=row["created_at"],
        kind=EntryKind.hold,
        what=f"held {between} until {row['expires_at']:%Y-%m-%d %H:%M:%S} UTC",
        subject=subject,
        actor=row["actor"],
        state="pending",
        amount=row["amount"],
    )
    if row["resolved_at"] is not None:
        yield TimelineEntry(
            at=row["resolved_at"],
            kind=EntryKind.hold,
            what=f"{'hold' if row['state'] == 'posted' else 'hold was'} {row['state']}, {between}",
            subject=subject,
            state=row["state"],
            amount=row["amount"] if row["posted_amount"] is None else row["posted_amount"],
        )


def _entry(row: Row) -> TimelineEntry:
    return TimelineEntry(
        at=row["created_at"],
        kind=EntryKind.entry,
        what=f"account/{row['account_id']}, {row['kind']}; the balance is then {row['balance']}",
        subject=f"transfer/{row['transfer_id']}",
        amount=row["amount"],
    )


def _movement(row: Row) -> TimelineEntry:
    pieces = abs(row["pieces"])
    return TimelineEntry(
        at=row["created_at"],
        kind=EntryKind.movement,
        what=f"{pieces} {'piece' if pieces == 1 else 'pieces'} of product/{row['product_id']} {row['kind']}",
        subject=f"product/{row['product_id']}",
        actor=row["actor"],
        state=row["kind"],
    )


def _event(event: FoundEvent, waits: Why | None, ended: Mapping[UUID, str], shows_error: bool) -> TimelineEntry:
    if waits is not None:
        state, because = waits.state.value, f": {waits.because}" if shows_error else ""
    else:
        state = ended.get(event.id) or ("processed" if event.type in QUEUED else "logged")
        because = ""
    return TimelineEntry(
        at=event.occurred_at,
        kind=EntryKind.event,
        what=f"{event.type}{because}",
        subject=f"event/{event.id}",
        actor=event.actor,
        state=state,
        error=waits.error if waits is not None and shows_error else None,
        request_id=event.request_id,
        traceparent=event.traceparent,
    )


def _failure(event_id: UUID, failure: Mapping[str, object]) -> TimelineEntry:
    at = datetime.fromisoformat(str(failure["at"]))
    return TimelineEntry(
        at=at if at.tzinfo else at.replace(tzinfo=UTC),
        kind=EntryKind.failure,
        what=f"attempt {failure['attempt']} failed",
        subject=f"event/{event_id}",
        error=last_line(str(failure["error"])),
    )


def _action(row: Row) -> TimelineEntry:
    return TimelineEntry(
        at=row["at"],
        kind=EntryKind.action,
        what=f"{row['action'].replace('_', ' ')} {row['type']}",
        subject=f"event/{row['event_id']}",
        actor=row["actor"],
        reason=row["reason"],
        error=row["message"],
    )
