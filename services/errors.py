"""Domain errors: a stable code, a message for people, and where in the input the trouble lies. No HTTP here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with the input. `pointer` is a JSON Pointer (RFC 6901) as a URI fragment, such as `#/items/0`."""

    detail: str
    pointer: str


@dataclass
class DomainError(Exception):
    """A refusal with a stable `code`. Everything done in the unit of work is rolled back."""

    detail: str
    faults: Sequence[Fault] = ()
    code: ClassVar[str] = "refused"

    def __str__(self) -> str:
        return self.detail


class InvalidInput(DomainError):
    """The request is well formed, but what it asks for makes no sense here."""

    code = "invalid_input"


class BadQuery(DomainError):
    """A filter, sort or cursor that this list does not know."""

    code = "bad_query"


class Unauthenticated(DomainError):
    """No valid credentials."""

    code = "unauthenticated"


class Forbidden(DomainError):
    """The caller may not do this."""

    code = "forbidden"


class NotFound(DomainError):
    """No such thing, or none that the caller may see."""

    code = "not_found"


class Conflict(DomainError):
    """The state of things does not allow this now."""

    code = "conflict"


class AlreadyExists(Conflict):
    """Something else has this unique name."""

    code = "already_exists"


class StaleVersion(DomainError):
    """The row was changed since the caller read it."""

    code = "stale_version"


class VersionRequired(DomainError):
    """The caller must say which version it read."""

    code = "version_required"


class InsufficientCredits(DomainError):
    """The account's available credits do not cover the amount."""

    code = "insufficient_credits"


class AccountClosed(Conflict):
    """One of the accounts is closed: it neither sends nor receives."""

    code = "account_closed"


class SameAccount(InvalidInput):
    """The credits would go to the account they come from."""

    code = "same_account"


class UnknownRecipient(InvalidInput):
    """There is no such user to send credits to, or no longer."""

    code = "unknown_recipient"


class AmountInvalid(InvalidInput):
    """The amount is none that can be moved here."""

    code = "amount_invalid"


class TransferAlreadyPosted(Conflict):
    """The pending transfer was posted before."""

    code = "transfer_already_posted"


class TransferAlreadyVoided(Conflict):
    """The pending transfer was voided before."""

    code = "transfer_already_voided"


class TransferExpired(Conflict):
    """The pending transfer was neither posted nor voided in time."""

    code = "transfer_expired"


class TransferAlreadyReversed(Conflict):
    """Another transfer has reversed this one."""

    code = "transfer_already_reversed"


class TransferNotReversible(Conflict):
    """A transfer of this kind or state is undone in another way."""

    code = "transfer_not_reversible"


class TransferOfOrder(Conflict):
    """The transfer belongs to an order, and is resolved or given back with it."""

    code = "transfer_of_order"


class LinkedFailed(Conflict):
    """Another transfer that this one stands or falls with has failed."""

    code = "linked_failed"


class LinkedChainOpen(InvalidInput):
    """The last transfer of a batch is linked to a next one that does not come."""

    code = "linked_chain_open"


class BatchRefused(InvalidInput):
    """The database refuses more transfers of the batch than one transaction can set apart."""

    code = "batch_refused"


class IdempotencyKeyInvalid(DomainError):
    """The Idempotency-Key is missing where it is required, or malformed."""

    code = "idempotency_key_invalid"


class IdempotencyKeyReused(InvalidInput):
    """The key was used before with another request."""

    code = "idempotency_key_reused"


class RequestInFlight(Conflict):
    """A request with the same key is being processed at this moment."""

    code = "request_in_flight"
