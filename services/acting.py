"""Who acts, and the acts that the audit log keeps.

An actor is recorded as `user:12`, `key:<uuid>`, `job:<name>` or `command:<name>`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from typing import Any, NamedTuple

LONGEST_ACTOR = 120
"""Characters of an actor, including the longest names of event types and consumers."""

LONGEST_ADDRESS = 255


class Acting(NamedTuple):
    """Who acts, which user is behind that, and from where: an IP address, or a command's system user and host."""

    actor: str | None = None
    user_id: int | None = None
    address: str | None = None


_ACTING: ContextVar[Acting] = ContextVar("acting")


@contextmanager
def acting_as(actor: str, address: str | None = None) -> Iterator[None]:
    """While the block runs, units of work that are opened in it record this actor, unless they are given another.

    For jobs and commands; a request says by itself who acts.
    """
    token = _ACTING.set(Acting(actor, None, address))
    try:
        yield
    finally:
        _ACTING.reset(token)


def acting_now() -> Acting:
    """The actor of the innermost `acting_as`."""
    return _ACTING.get(Acting())


class Action(StrEnum):
    """What someone did, or tried to do, that matters beyond the rows it changed.

    There is no CHECK: each new action would need a migration, and the release before would have to know it.
    """

    registered = "user.registered"
    signed_in = "user.signed_in"
    sign_in_refused = "user.sign_in_refused"
    signed_out_everywhere = "user.signed_out_everywhere"
    token_reused = "session.token_reused"  # noqa: S105 (not a password)
    """A refresh token was used twice, so its session was ended."""
    password_changed = "user.password_changed"  # noqa: S105
    password_reset = "user.password_reset"  # noqa: S105
    email_changed = "user.email_changed"
    second_factor_set = "user.second_factor_set"
    second_factor_removed = "user.second_factor_removed"
    recovery_code_used = "user.recovery_code_used"
    recovery_codes_renewed = "user.recovery_codes_renewed"
    role_changed = "user.role_changed"
    role_requested = "user.role_requested"
    role_approved = "user.role_approved"
    role_rejected = "user.role_rejected"
    deactivated = "user.deactivated"
    activated = "user.activated"
    deleted = "user.deleted"
    restored = "user.restored"
    erased = "user.erased"
    exported = "user.exported"
    """What is stored about a user was exported."""
    key_made = "key.made"
    key_rotated = "key.rotated"
    key_revoked = "key.revoked"
    top_up = "credits.top_up"
    adjustment_requested = "adjustment.requested"
    adjustment_approved = "adjustment.approved"
    adjustment_rejected = "adjustment.rejected"
    reversed = "transfer.reversed"
    account_closed = "account.closed"
    account_reopened = "account.reopened"
    price_changed = "product.price_changed"
    stock_changed = "product.stock_changed"
    type_paused = "outbox.type_paused"
    type_resumed = "outbox.type_resumed"
    type_limited = "outbox.type_limited"
    letters_replayed = "outbox.replayed"
    letters_discarded = "outbox.discarded"
    event_cancelled = "outbox.cancelled"
    event_retried = "outbox.retried"
    event_buried = "outbox.buried"
    event_discarded = "outbox.event_discarded"
    bulk_started = "bulk_action.started"
    bulk_cancelled = "bulk_action.cancelled"
    bulk_finished = "bulk_action.finished"
    consumer_paused = "consumer.paused"
    consumer_resumed = "consumer.resumed"
    consumer_reset = "consumer.reset"
    consumer_deleted = "consumer.deleted"
    reports_rebuilt = "reports.rebuilt"
    """The reports began to be counted again."""
    log_rebased = "outbox.rebased"
    job_requested = "job.requested"
    job_paused = "job.paused"
    job_resumed = "job.resumed"
    worker_quieted = "worker.quieted"
    worker_resumed = "worker.resumed"
    worker_stopped = "worker.stopped"
    log_exported = "audit_log.exported"
    orders_exported = "orders.exported"
    """The orders of all users were exported."""
    unauthenticated = "request.unauthenticated"
    """Requests were refused with 401."""
    forbidden = "request.forbidden"
    """Requests of a signed-in caller were refused with 403."""
    limited = "request.limited"
    """Requests were refused with 429."""


class Act(NamedTuple):
    """An entry of the audit log. `number` is how often it happened: only refusals are counted.

    `object` is what it was done to, as `kind/id`, or for refused requests the method and the route. `details` must
    contain no secrets.
    """

    action: Action
    object: str
    by: Acting
    request_id: str | None = None
    reason: str = ""
    details: Mapping[str, Any] = {}
    number: int = 1
