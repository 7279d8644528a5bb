"""Every domain error has an HTTP status, its own or that of its root class."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import services
from services.api.problems import status_of
from services.errors import DomainError, SignInRefused

STATUSES = {
    "account_closed": 409,
    "already_exists": 409,
    "amount_invalid": 422,
    "approval_needed": 403,
    "approver_too_new": 403,
    "bad_query": 400,
    "batch_refused": 422,
    "conflict": 409,
    "erasure_blocked": 409,
    "forbidden": 403,
    "idempotency_key_invalid": 400,
    "idempotency_key_reused": 422,
    "insufficient_credits": 402,
    "invalid_input": 422,
    "linked_chain_open": 422,
    "linked_failed": 409,
    "mail_off": 404,
    "not_found": 404,
    "note_required": 422,
    "otp_invalid": 401,
    "otp_required": 401,
    "overloaded": 503,
    "own_account": 403,
    "own_request": 403,
    "own_role": 403,
    "quota_exceeded": 409,
    "replay_forbidden": 403,
    "reports_off": 404,
    "reports_unavailable": 503,
    "request_in_flight": 409,
    "role_alone": 422,
    "role_request_decided": 409,
    "role_request_expired": 409,
    "role_request_pending": 409,
    "same_account": 422,
    "second_factor_missing": 403,
    "staff_address": 403,
    "stale_version": 412,
    "token_invalid": 422,
    "too_many_attempts": 429,
    "rate_limited": 429,
    "transfer_already_posted": 409,
    "transfer_already_reversed": 409,
    "transfer_already_voided": 409,
    "transfer_expired": 409,
    "transfer_not_reversible": 409,
    "transfer_of_order": 409,
    "transfer_refused": 422,
    "unauthenticated": 401,
    "unknown_recipient": 422,
    "version_required": 428,
    "wrong_code": 403,
    "wrong_password": 403,
}
"""The status of each code, which clients rely on."""

ROOTS = DomainError.__subclasses__()


def descendants(kind: type[DomainError]) -> Iterator[type[DomainError]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


def errors_of_services() -> set[type[DomainError]]:
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return {error for error in descendants(DomainError) if error.__module__.startswith("services.")}


def test_each_code_has_its_status_and_no_two_errors_share_a_code() -> None:
    found = errors_of_services()
    assert {error.code: status_of(error) for error in found} == STATUSES
    # One that says more to the audit log only; clients must not tell it from the others with its code.
    assert len(found - {SignInRefused}) == len(STATUSES)


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.__name__)
def test_a_new_error_has_the_status_of_its_root(root: type[DomainError]) -> None:
    assert status_of(type("BrandNew", (root,), {"code": "brand_new"})) == status_of(root)


def test_a_root_without_a_status_of_its_own_is_still_a_refusal() -> None:
    assert status_of(type("NewRoot", (DomainError,), {"code": "new_root"})) == 422
