"""Domain errors: a stable code, a message for people, and pointers to what is wrong in the input. No HTTP here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class CannotStart(Exception):
    """This process or command cannot start. The message is one sentence that says why and what to do."""


MOST_FAULTS = 20
"""How many faults a reply lists; it counts the others."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault in the input. `pointer` is a JSON Pointer (RFC 6901) as a URI fragment, such as `#/items/0`."""

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
    """The request is well formed, but its content is not valid."""

    code = "invalid_input"


class BadQuery(DomainError):
    """A filter, sort or cursor that this list does not support."""

    code = "bad_query"


class Unauthenticated(DomainError):
    """No valid credentials."""

    code = "unauthenticated"


class OtpRequired(Unauthenticated):
    """The password is right, and the account needs a one-time code as well."""

    code = "otp_required"


class OtpInvalid(Unauthenticated):
    """The password is right, but the one-time code is wrong or used."""

    code = "otp_invalid"


@dataclass
class SignInRefused(Unauthenticated):
    """The e-mail address or the password is wrong. `user_id` is who has the address, for the audit log only."""

    user_id: int | None = None


@dataclass
class TooManyAttempts(DomainError):
    """Too many wrong passwords or codes, or requests for a mail. `retry_after` is in seconds."""

    retry_after: int = 1
    code: ClassVar[str] = "too_many_attempts"


@dataclass
class RateLimited(DomainError):
    """The caller has sent too many requests within a minute. `retry_after` is in seconds."""

    retry_after: int = 1
    code: ClassVar[str] = "rate_limited"


class Overloaded(DomainError):
    """The process cannot take on more work at the moment."""

    code = "overloaded"


@dataclass
class Forbidden(DomainError):
    """The caller may not do this. `scope` is the scope that the caller lacks, if that is why."""

    scope: str | None = None
    code: ClassVar[str] = "forbidden"


class ReplayForbidden(Forbidden):
    """The stored reply was made for the caller in a role that they no longer have, or with more scopes than the key."""

    code = "replay_forbidden"


class WrongPassword(Forbidden):
    """The password with which the caller confirmed a request is not theirs."""

    code = "wrong_password"


class OwnAccount(Forbidden):
    """Operators neither correct their own account nor approve a correction of it."""

    code = "own_account"


class OwnRequest(Forbidden):
    """Those who requested something do not decide on it."""

    code = "own_request"


class ApproverTooNew(Forbidden):
    """The caller has not had the role that decides for long enough."""

    code = "approver_too_new"


class ApprovalNeeded(Forbidden):
    """It exceeds what one operator may do alone, and there is no request that another one could approve."""

    code = "approval_needed"


class OwnRole(Forbidden):
    """No one requests or decides on their own role."""

    code = "own_role"


class StaffAddress(Forbidden):
    """An e-mail address is enough to act as its user; that of a member of the staff is changed by themselves."""

    code = "staff_address"


class WrongCode(Forbidden):
    """The one-time code with which the caller confirmed a request is wrong or used."""

    code = "wrong_code"


class SecondFactorMissing(Forbidden):
    """The caller's role needs a second factor, which they have not set up."""

    code = "second_factor_missing"


class NotFound(DomainError):
    """It does not exist, or the caller may not see it."""

    code = "not_found"


class MailOff(NotFound):
    """This installation does not send mail."""

    code = "mail_off"


class ReportsOff(NotFound):
    """This installation has no analytics database."""

    code = "reports_off"


class ReportsUnavailable(DomainError):
    """The analytics database cannot be used now."""

    code = "reports_unavailable"


class Conflict(DomainError):
    """The current state does not allow this."""

    code = "conflict"


class ErasureBlocked(Conflict):
    """What identifies the user is still needed: they have credits, or orders that are open."""

    code = "erasure_blocked"


class RoleRequestPending(Conflict):
    """A request for another role of this user is waiting."""

    code = "role_request_pending"


class RoleRequestDecided(Conflict):
    """The request for another role has been approved or rejected."""

    code = "role_request_decided"


class RoleRequestExpired(Conflict):
    """No one has decided on the request for another role in time."""

    code = "role_request_expired"


class QuotaExceeded(Conflict):
    """The caller has reached the maximum number of these."""

    code = "quota_exceeded"


class AlreadyExists(Conflict):
    """The unique value is already taken."""

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
    """The user to send credits to does not exist, or no longer exists."""

    code = "unknown_recipient"


class TokenInvalid(InvalidInput):
    """The token from a mail is unknown, expired or used."""

    code = "token_invalid"


class AmountInvalid(InvalidInput):
    """The amount is not one that can be moved."""

    code = "amount_invalid"


class RoleAlone(InvalidInput):
    """A role that a second admin must approve is sent in a request of its own."""

    code = "role_alone"


class NoteRequired(InvalidInput):
    """A top-up that another operator must approve has to say what it is for."""

    code = "note_required"


class TransferRefused(InvalidInput):
    """A constraint or trigger of the database that has no code of its own does not allow these credits to move."""

    code = "transfer_refused"


class TransferAlreadyPosted(Conflict):
    """The pending transfer has already been posted."""

    code = "transfer_already_posted"


class TransferAlreadyVoided(Conflict):
    """The pending transfer has already been voided."""

    code = "transfer_already_voided"


class TransferExpired(Conflict):
    """The pending transfer was neither posted nor voided in time."""

    code = "transfer_expired"


class TransferAlreadyReversed(Conflict):
    """Another transfer has reversed this one."""

    code = "transfer_already_reversed"


class TransferNotReversible(Conflict):
    """A transfer of this kind or in this state cannot be reversed."""

    code = "transfer_not_reversible"


class TransferOfOrder(Conflict):
    """The transfer belongs to an order, and is resolved or refunded with it."""

    code = "transfer_of_order"


class LinkedFailed(Conflict):
    """Another transfer in the same linked chain has failed."""

    code = "linked_failed"


class LinkedChainOpen(InvalidInput):
    """The last transfer of a batch is linked to a next one, but none follows."""

    code = "linked_chain_open"


class BatchRefused(InvalidInput):
    """The database refuses more transfers of the batch than one transaction can isolate."""

    code = "batch_refused"


class IdempotencyKeyInvalid(DomainError):
    """The Idempotency-Key is missing where it is required, or malformed."""

    code = "idempotency_key_invalid"


class IdempotencyKeyReused(InvalidInput):
    """The key has already been used with a different request."""

    code = "idempotency_key_reused"


class RequestInFlight(Conflict):
    """A request with the same key is still being processed."""

    code = "request_in_flight"
