"""Credits for users, issued by the operator of a service through its API."""

from dataclasses import dataclass
from typing import Any

import httpx2

from services.cli.client import Service, ServiceError, Target, expect


@dataclass(frozen=True, slots=True)
class TopUp:
    """Credits for one user, whom messages call by their e-mail address."""

    user_id: int
    email: str
    amount: str
    note: str


async def issue_credits(service: Service, target: Target, wanted: TopUp, key: str) -> None:
    """Issue the credits once for each idempotency key. Raises `ServiceError`."""
    body = {"user_id": wanted.user_id, "amount": wanted.amount, "note": wanted.note}
    reply = await service.call(target.operator, "POST", "/v1/top-ups", body=body, key=key)
    if expect(reply, f"topping up {wanted.email}").status == httpx2.codes.ACCEPTED:
        await _approve(service, target, reply.body, wanted.email)


async def _approve(service: Service, target: Target, asked: dict[str, Any], email: str) -> None:
    """As a second operator, approve a top-up that one operator may not make alone."""
    what = f"approving the top-up of {email} with {asked['amount']} credits"
    if target.approver is None:
        raise ServiceError(
            f"{what} takes a second operator: give --approver-email and --approver-password, or have adjustment "
            f"{asked['id']} approved and repeat the command"
        )
    path = f"/v1/adjustments/{asked['id']}/approve"
    reply = await service.call(target.approver, "POST", path, key=f"approve-{asked['id']}")
    if reply.status == httpx2.codes.CONFLICT:
        # Approved before, and the key has been forgotten since; or rejected.
        found = await service.read(target.approver, f"/v1/adjustments/{asked['id']}")
        if found["state"] == "applied":
            return
    expect(reply, what)
