"""The audit finds writes that were answered with a 2xx but are gone, and names the caller and the key."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from services.audit.schemas import DifferenceKind
from services.fields import now
from services.users.models import User
from tests.api.audited import corrupt, run_audit
from tests.api.client import Api, order_of
from tests.factories import make_operator

UNDONE = "UPDATE {table} SET state = 'pending', {more} WHERE id = :id"
UNRESOLVED = UNDONE.format(table="transfers", more="posted_amount = NULL, resolved_at = NULL")

LOST: Mapping[str, tuple[DifferenceKind, list[str]]] = {
    "an order": (DifferenceKind.acknowledged_order, ["DELETE FROM orders WHERE id = :id"]),
    "an order's payment": (
        DifferenceKind.acknowledged_order,
        ["DELETE FROM order_transitions WHERE order_id = :id AND from_status = 'awaiting_payment'"],
    ),
    "a cancellation": (
        DifferenceKind.acknowledged_order,
        ["DELETE FROM order_transitions WHERE order_id = :id AND to_status = 'cancelled'"],
    ),
    "a fulfilment": (
        DifferenceKind.acknowledged_order,
        ["DELETE FROM order_transitions WHERE order_id = :id AND to_status = 'fulfilled'"],
    ),
    "a refund": (DifferenceKind.acknowledged_refund, ["DELETE FROM refunds WHERE id = :id"]),
    "a top-up": (DifferenceKind.acknowledged_transfer, ["DELETE FROM transfers WHERE id = :id"]),
    "a transfer": (DifferenceKind.acknowledged_transfer, ["DELETE FROM transfers WHERE id = :id"]),
    "a transfer of a batch": (DifferenceKind.acknowledged_transfer, ["DELETE FROM transfers WHERE id = :id"]),
    "a hold": (DifferenceKind.acknowledged_transfer, ["DELETE FROM transfers WHERE id = :id"]),
    "a hold's posting": (DifferenceKind.acknowledged_transfer, [UNRESOLVED]),
    "a hold's voiding": (DifferenceKind.acknowledged_transfer, [UNRESOLVED]),
    "a reversal": (DifferenceKind.acknowledged_transfer, ["DELETE FROM transfers WHERE id = :id"]),
    "an adjustment": (DifferenceKind.acknowledged_adjustment, ["DELETE FROM adjustments WHERE id = :id"]),
    "an approval": (
        DifferenceKind.acknowledged_adjustment,
        [UNDONE.format(table="adjustments", more="decided_by = NULL, decided_at = NULL, transfer_id = NULL")],
    ),
    "a rejection": (
        DifferenceKind.acknowledged_adjustment,
        [UNDONE.format(table="adjustments", more="decided_by = NULL, decided_at = NULL")],
    ),
}
"""What is deleted, and what the audit calls it."""

CHANGED: Mapping[str, tuple[str, str]] = {
    "an order": ("UPDATE orders SET buyer_id = :operator WHERE id = :id", "of buyer"),
    "a refund": ("UPDATE refunds SET amount = 0.01 WHERE id = :id", "0.01"),
    "a transfer": ("UPDATE transfers SET amount = 99 WHERE id = :id", "99.00"),
    "a hold's posting": ("UPDATE transfers SET posted_amount = 0.01 WHERE id = :id", "0.01"),
    "an adjustment": ("UPDATE adjustments SET amount = 99 WHERE id = :id", "99.00"),
}
"""What differs from the reply; the audit names what it found instead."""


@dataclass
class Told:
    """One of each acknowledged write: its caller, path, key and id."""

    api: Api
    operator: User
    writes: dict[str, tuple[User, str, str, UUID]] = field(default_factory=dict)

    async def send(self, name: str, path: str, by: User, json: Any = None) -> dict[str, Any]:
        key = "the-key-of-" + name.replace(" ", "-")
        reply = await self.api.post(path, by=by, key=key, json=json)
        assert reply.status_code in (200, 201), reply.text
        body: dict[str, Any] = reply.json()
        named = body["results"][1]["transfer"] if "results" in body else body
        self.writes[name] = (by, path, key, UUID(named["id"]))
        return body


@pytest.fixture
async def told(api: Api) -> Told:
    told = Told(api, await make_operator(api.database))
    buyer, seller, product = await api.shop(price="10.00", stock=20, credits="100")
    await _trade(told, buyer, seller, product)
    await _move(told, buyer, seller)
    assert set(told.writes) == set(LOST)
    return told


async def _trade(told: Told, buyer: User, seller: User, product: Any) -> None:
    dear = await told.send("an order's payment", "/v1/orders", buyer, order_of((product, 11)))
    returned = await told.api.place(buyer, (product, 1))
    fulfilled = await told.api.place(buyer, (product, 1))
    await told.api.process()
    await told.send("a refund", f"/v1/orders/{returned['id']}/refunds", seller, {"reason": "broken"})
    await told.send("a fulfilment", f"/v1/orders/{fulfilled['id']}/fulfil", seller)
    await told.send("an order", "/v1/orders", buyer, order_of((product, 1)))
    cancelled = await told.api.place(buyer, (product, 1))
    await told.send("a cancellation", f"/v1/orders/{cancelled['id']}/cancel", buyer, {})
    await told.send("a top-up", "/v1/top-ups", told.operator, {"user_id": buyer.id, "amount": "500"})
    await told.send("an order's payment", f"/v1/orders/{dear['id']}/pay", buyer)


async def _move(told: Told, payer: User, payee: User) -> None:
    one = {"to_user_id": payee.id, "amount": "3.00"}
    refused = {"to_user_id": payer.id, "amount": "1.00"}
    batch = {"mode": "independent", "transfers": [refused, one, refused]}
    await told.send("a transfer", "/v1/transfers", payer, one)
    await told.send("a transfer of a batch", "/v1/transfers/batch", payer, batch)
    nothing = await told.api.post("/v1/transfers/batch", by=payer, json={**batch, "transfers": [refused]})
    assert (nothing.status_code, nothing.json()["posted"]) == (200, 0)

    held = {**one, "expires_at": (now() + timedelta(hours=1)).isoformat()}
    await told.send("a hold", "/v1/holds", payer, held)
    for name, verb, wanted in (("a hold's posting", "post", {"amount": "2.00"}), ("a hold's voiding", "void", None)):
        hold = await told.api.post("/v1/holds", by=payer, json=held)
        await told.send(name, f"/v1/transfers/{hold.json()['id']}/{verb}", payee, wanted)
    wrong = await told.api.post("/v1/transfers", by=payer, json=one)
    path = f"/v1/transfers/{wrong.json()['id']}/reverse"
    await told.send("a reversal", path, told.operator, {"reason": "wrong"})

    other = await make_operator(told.api.database)
    small = {"user_id": payer.id, "amount": "1.00", "reason": "found"}
    await told.send("an adjustment", "/v1/adjustments", told.operator, small)
    for name, verb in (("an approval", "approve"), ("a rejection", "reject")):
        large = await told.api.post("/v1/adjustments", by=told.operator, json={**small, "amount": "5000"})
        await told.send(name, f"/v1/adjustments/{large.json()['id']}/{verb}", other)


async def test_acknowledged_writes_that_exist_are_not_differences(told: Told) -> None:
    result, found = await run_audit(told.api.database)
    assert [difference.message for difference in found] == []
    stored = await told.api.scalar("SELECT count(*) FROM idempotency_keys")
    assert stored > len(LOST)
    async with told.api.database.engine.begin() as connection:
        await connection.exec_driver_sql("DELETE FROM idempotency_keys")
    assert (await run_audit(told.api.database))[0].rows_checked == result.rows_checked - stored


@pytest.mark.parametrize("name", LOST)
async def test_a_lost_acknowledged_write_is_named_with_caller_path_and_key(told: Told, name: str) -> None:
    kind, statements = LOST[name]
    caller, path, key, lost = told.writes[name]
    await corrupt(told.api.database, *statements, id=lost)

    _, found = await run_audit(told.api.database)

    of_key = [difference for difference in found if difference.subject.get("key") == key]
    assert [difference.kind for difference in of_key] == [kind], found
    expected = f"it was acknowledged to user {caller.id} by POST {path} with the key {key}"
    assert str(lost) in of_key[0].message
    assert of_key[0].message.endswith(expected)
    told_of_it = {difference.subject["key"] for difference in found if difference.kind.value.startswith("acknowledged")}
    elsewhere = [other for other, (_, _, at, named) in told.writes.items() if at in told_of_it and named != lost]
    assert elsewhere == [], "other writes are blamed"


@pytest.mark.parametrize("name", CHANGED)
async def test_a_write_that_differs_from_its_reply_is_named_with_what_was_found(told: Told, name: str) -> None:
    statement, instead = CHANGED[name]
    _, _, key, changed = told.writes[name]
    await corrupt(told.api.database, statement, id=changed, operator=told.operator.id)

    _, found = await run_audit(told.api.database)

    [difference] = [difference for difference in found if difference.subject.get("key") == key]
    assert difference.kind is LOST[name][0]
    assert difference.found != difference.expected
    assert instead in difference.found


@pytest.mark.parametrize(
    "body",
    [b"", b"nonsense", b"\xff\xfe", b'{"id": "\\u0000"}', b"[1]", b"null", b"7", b'{"id": 7}', b"[" * 100_000],
    ids=["empty", "no JSON", "no UTF-8", "U+0000", "array", "null", "number", "id of another type", "too deep"],
)
async def test_an_unreadable_stored_reply_is_reported_and_does_not_end_the_audit(told: Told, body: bytes) -> None:
    names = ["an order", "a refund", "a transfer", "a transfer of a batch", "an adjustment"]
    keys = [told.writes[name][2] for name in names]
    async with told.api.database.engine.begin() as connection:
        broken = "UPDATE idempotency_keys SET body = $1 WHERE key = ANY($2)"
        assert (await connection.exec_driver_sql(broken, (body, keys))).rowcount == len(keys)
    # A batch of which nothing was posted answers with an object that names no transfer.
    silent = {told.writes["a transfer of a batch"][2]} if body == b'{"id": 7}' else set()

    _, found = await run_audit(told.api.database)

    assert {difference.kind for difference in found} == {DifferenceKind.acknowledged_unreadable}
    assert {difference.subject["key"] for difference in found} == set(keys) - silent
    assert all(str(difference.subject["key"]) in difference.message for difference in found)


async def test_refusals_acknowledge_nothing(told: Told) -> None:
    buyer = told.writes["an order"][0]
    reply = await told.api.post("/v1/transfers", by=buyer, json={"to_user_id": buyer.id, "amount": "1.00"})
    assert reply.status_code == 422
    assert await told.api.scalar("SELECT count(*) FROM idempotency_keys WHERE status = 422") == 1
    assert (await run_audit(told.api.database))[1] == []
