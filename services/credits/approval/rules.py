"""What an operator may do alone. Pure functions on sums that were read before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from services.credits.ledger.rules import Movement
from services.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be issued or taken without approval within `window`, and who may approve the rest."""

    per_operator: Decimal
    per_account: Decimal
    window: timedelta
    tenure: timedelta
    """How long an approver must have been an operator."""

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        return cls(
            settings.operator_approval_above,
            settings.adjustment_approval_above,
            timedelta(seconds=settings.approval_window),
            timedelta(seconds=settings.tenure_of_approvers),
        )


@dataclass(frozen=True, slots=True)
class Sums:
    """What was issued and taken without approval within the window: by the operator, and by account, by anyone."""

    by_operator: Decimal
    on_account: Mapping[int, Decimal]
    """By the account's id. System accounts have no limit and are left out."""


def within(limits: Limits, sums: Sums, movements: Sequence[Movement]) -> bool:
    """Whether these movements, together with those before, stay within the limits of the operator and each account.

    What is given and what is taken both count in full: they do not cancel each other out.
    """
    if sums.by_operator + sum(one.amount for one in movements) > limits.per_operator:
        return False
    return all(
        before + sum(one.amount for one in movements if account_id in (one.debit_account_id, one.credit_account_id))
        <= limits.per_account
        for account_id, before in sums.on_account.items()
    )
