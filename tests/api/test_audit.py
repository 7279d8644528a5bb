"""The audit finds what was changed behind the ledger's back, names it, and blames nothing else."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest

from services.audit.schemas import DifferenceKind
from services.unit_of_work import UnitOfWork
from tests.api import test_acknowledged
from tests.api.audited import Busy, corrupt, run_audit, trade
from tests.api.client import Api, assert_problem
from tests.integration.test_audit_chain import TAMPERED

Expected = list[tuple[str, dict[str, Any]]]

CORRUPTIONS: Mapping[str, tuple[list[str], Expected]] = {
    "a balance": (
        ["UPDATE accounts SET posted = posted + 1 WHERE id = :seller"],
        [("account_posted", {"account_id": "seller"})],
    ),
    "held credits": (
        ["UPDATE accounts SET held = held + 0.01 WHERE id = :buyer"],
        [("account_held", {"account_id": "buyer"})],
    ),
    "an account's version": (
        ["UPDATE accounts SET version = version + 1 WHERE id = :issuance"],
        [("account_version", {"account_id": "issuance"})],
    ),
    "an account below zero": (
        [
            "ALTER TABLE accounts DROP CONSTRAINT ck_accounts_available",
            "UPDATE accounts SET posted = -1 WHERE id = :seller",
        ],
        [("account_overdrawn", {"account_id": "seller"}), ("account_posted", {"account_id": "seller"})],
    ),
    "an entry's amount": (
        ["UPDATE entries SET amount = amount + 1 WHERE transfer_id = :t_transfer AND account_id = :seller"],
        [
            ("ledger_sum", {}),
            ("entry_balance", {"account_id": "seller"}),
            ("account_posted", {"account_id": "seller"}),
            ("transfer_unbalanced", {"transfer_id": "t_transfer"}),
        ],
    ),
    "the balance after the newest entry": (
        [
            "UPDATE entries SET balance = balance + 5 FROM accounts"
            " WHERE accounts.id = account_id AND accounts.version = entries.version AND account_id = :buyer"
        ],
        [("entry_balance", {"account_id": "buyer"})],
    ),
    "both entries of a transfer are gone": (
        ["DELETE FROM entries WHERE transfer_id = :t_partial"],
        [
            ("entry_version", {"account_id": "buyer"}),
            ("entry_version", {"account_id": "seller"}),
            ("account_posted", {"account_id": "buyer"}),
            ("account_posted", {"account_id": "seller"}),
            ("account_version", {"account_id": "buyer"}),
            ("account_version", {"account_id": "seller"}),
            ("transfer_entries", {"transfer_id": "t_partial"}),
        ],
    ),
    "a transfer is gone": (
        ["DELETE FROM transfers WHERE id = :t_partial"],
        [
            ("entry_orphan", {"account_id": "buyer", "transfer_id": "t_partial"}),
            ("entry_orphan", {"account_id": "seller", "transfer_id": "t_partial"}),
        ],
    ),
    "a posted transfer says voided": (
        ["UPDATE transfers SET state = 'voided', posted_amount = NULL WHERE id = :t_partial"],
        [("transfer_entries", {"transfer_id": "t_partial"})],
    ),
    "an expired transfer says posted": (
        ["UPDATE transfers SET state = 'posted', posted_amount = amount WHERE id = :t_expired"],
        [("transfer_entries", {"transfer_id": "t_expired"})],
    ),
    "entries on the wrong side": (
        ["UPDATE transfers SET debit_account_id = :seller, credit_account_id = :buyer WHERE id = :t_partial"],
        [("transfer_entries", {"transfer_id": "t_partial"})],
    ),
    "a partial posting of another amount": (
        ["UPDATE transfers SET posted_amount = 2 WHERE id = :t_partial"],
        [("transfer_entries", {"transfer_id": "t_partial"})],
    ),
    "a posting above its hold": (
        [
            "ALTER TABLE transfers DROP CONSTRAINT ck_transfers_posted_amount",
            "UPDATE transfers SET amount = 1 WHERE id = :t_partial",
        ],
        [("transfer_posting", {"transfer_id": "t_partial"})],
    ),
    "a reversal of something else": (
        ["UPDATE transfers SET reverses = :t_partial WHERE id = :t_reversal"],
        [("reversal", {"transfer_id": "t_reversal", "reversed_id": "t_partial"})],
    ),
    "an adjustment of another amount": (
        ["UPDATE adjustments SET amount = 4 WHERE id = :adjustment"],
        [("adjustment", {"adjustment_id": "adjustment", "transfer_id": "t_adjustment"})],
    ),
    "an adjustment that nobody asked for": (
        ["DELETE FROM adjustments WHERE id = :adjustment"],
        [("adjustment_orphan", {"transfer_id": "t_adjustment"})],
    ),
    "an adjustment that asked for something else": (
        ["UPDATE adjustments SET operation = 'top_up' WHERE id = :adjustment"],
        [("adjustment", {"adjustment_id": "adjustment", "transfer_id": "t_adjustment"})],
    ),
    "a movement without approval of another amount": (
        ["UPDATE unapproved_movements SET amount = amount - 1 WHERE transfer_id = :t_top_up"],
        [("unapproved_movement", {"transfer_id": "t_top_up", "operator_id": "operator"})],
    ),
    "a movement without approval that is about something else": (
        ["UPDATE unapproved_movements SET transfer_id = :t_transfer WHERE transfer_id = :t_top_up"],
        [("unapproved_movement", {"transfer_id": "t_transfer", "operator_id": "operator"})],
    ),
    "the holds of a pending order": (
        ["UPDATE transfers SET state = 'voided', resolved_at = now() WHERE order_id = :pending"],
        [
            ("account_held", {"account_id": "buyer"}),
            ("order_held", {"order_id": "pending", "status": "status:pending"}),
            ("payee_held", {"order_id": "pending", "account_id": "seller"}),
            ("payee_held", {"order_id": "pending", "account_id": "other"}),
        ],
    ),
    "the total of an order that was paid": (
        ["UPDATE orders SET total = total + 1 WHERE id = :confirmed"],
        [
            ("order_paid", {"order_id": "confirmed", "status": "status:confirmed"}),
            ("order_total", {"order_id": "confirmed"}),
            ("event_differs", {"aggregate": "order_confirmed", "type": "type:order.placed"}),
            ("event_differs", {"aggregate": "order_confirmed", "type": "type:order.confirmed"}),
            ("acknowledged_order", {"order_id": "confirmed"}),
        ],
    ),
    "payments of an order that is not there": (
        ["UPDATE transfers SET order_id = :t_partial WHERE order_id = :confirmed AND credit_account_id = :seller"],
        [
            ("order_paid", {"order_id": "confirmed"}),
            ("payee_paid", {"order_id": "confirmed", "account_id": "seller"}),
            ("transfer_order", {}),
        ],
    ),
    "refunds of an order that was not paid": (
        ["UPDATE transfers SET order_id = :pending WHERE order_id = :returned AND kind = 'refund'"],
        [
            ("order_paid", {"order_id": "returned"}),
            ("order_refunded", {"order_id": "pending"}),
            ("order_refunded", {"order_id": "returned"}),
            ("order_refunded_above_paid", {"order_id": "pending"}),
            *(
                ("payee_refunded", {"order_id": order, "account_id": payee})
                for order in ("pending", "returned")
                for payee in ("seller", "other")
            ),
        ],
    ),
    "the shares of two sellers of a pending order": (
        [
            "UPDATE transfers SET credit_account_id = CASE credit_account_id WHEN :seller THEN CAST(:other AS bigint)"
            " ELSE :seller END WHERE order_id = :pending"
        ],
        [
            ("payee_held", {"order_id": "pending", "account_id": "seller"}),
            ("payee_held", {"order_id": "pending", "account_id": "other"}),
        ],
    ),
    "the amounts of two sellers of a pending order": (
        [
            "UPDATE transfers SET amount = amount + CASE credit_account_id WHEN :seller THEN 1 ELSE -1 END"
            " WHERE order_id = :pending"
        ],
        [
            ("payee_held", {"order_id": "pending", "account_id": "seller"}),
            ("payee_held", {"order_id": "pending", "account_id": "other"}),
        ],
    ),
    "the quantity of a line": (
        ["UPDATE order_items SET quantity = quantity + 1 WHERE order_id = :pending AND line = 1"],
        [
            ("order_total", {"order_id": "pending"}),
            ("payee_held", {"order_id": "pending", "account_id": "seller"}),
        ],
    ),
    "a line is gone": (
        ["DELETE FROM order_items WHERE order_id = :pending AND line = 2"],
        [
            ("order_total", {"order_id": "pending"}),
            ("order_item_count", {"order_id": "pending"}),
            ("payee_held", {"order_id": "pending", "account_id": "other"}),
        ],
    ),
    "pieces returned without a refund": (
        ["UPDATE order_items SET returned = 1 WHERE order_id = :fulfilled AND line = 1"],
        [
            ("order_returned", {"order_id": "fulfilled"}),
            ("payee_refunded", {"order_id": "fulfilled", "account_id": "seller"}),
            ("stock_moved_for_order", {"order_id": "fulfilled", "product_id": "product"}),
        ],
    ),
    "a refund that its lines do not explain": (
        [
            "INSERT INTO refunds (id, order_id, amount, requested_by) VALUES (:t_partial, :fulfilled, 9, :operator)",
            "INSERT INTO refund_lines (refund_id, line, order_id, quantity) VALUES (:t_partial, 1, :fulfilled, 1)",
        ],
        [
            ("refund_amount", {"refund_id": "t_partial", "order_id": "fulfilled"}),
            ("refund_returned", {"order_id": "fulfilled", "line": 1}),
            ("event_missing", {"aggregate": "order_fulfilled", "type": "type:order.refunded"}),
        ],
    ),
    "a status without its transition": (
        ["UPDATE orders SET status = 'rejected' WHERE id = :cancelled"],
        [("order_status", {"order_id": "cancelled"})],
    ),
    "a transition is gone": (
        ["DELETE FROM order_transitions WHERE order_id = :fulfilled AND to_status = 'confirmed'"],
        [
            ("order_history", {"order_id": "fulfilled"}),
            ("event_differs", {"aggregate": "order_fulfilled", "type": "type:order.confirmed"}),
        ],
    ),
    "reserved pieces": (
        ["UPDATE inventory SET reserved = reserved + 1 WHERE product_id = :product"],
        [("stock_reserved", {"product_id": "product"})],
    ),
    "more pieces reserved than there are": (
        [
            "ALTER TABLE inventory DROP CONSTRAINT ck_inventory_reserved",
            "UPDATE inventory SET on_hand = 1 WHERE product_id = :product",
        ],
        [("stock_impossible", {"product_id": "product"}), ("stock_moved", {"product_id": "product"})],
    ),
    "pieces that come from nowhere": (
        ["UPDATE inventory SET on_hand = on_hand + 5 WHERE product_id = :product"],
        [("stock_moved", {"product_id": "product"})],
    ),
    "the stock of a product is gone": (
        ["DELETE FROM inventory WHERE product_id = :product"],
        [("stock_moved", {"product_id": "product"}), ("stock_reserved", {"product_id": "product"})],
    ),
    "pieces that were added by hand": (
        [
            "INSERT INTO stock_movements (product_id, kind, pieces) VALUES (:product, 'by_hand', 5)",
            "UPDATE inventory SET on_hand = on_hand + 5 WHERE product_id = :product",
        ],
        [("stock_by_hand", {"product_id": "product"})],
    ),
    "pieces that an order did not take": (
        [
            "INSERT INTO stock_movements (product_id, kind, order_id, pieces)"
            " SELECT :product, 'shipped', order_id, -1 FROM unnest(ARRAY[CAST(:fulfilled AS uuid), :confirmed])"
            " AS order_id",
            "UPDATE inventory SET on_hand = on_hand - 2 WHERE product_id = :product",
        ],
        [
            ("stock_moved_for_order", {"order_id": "fulfilled", "product_id": "product"}),
            ("stock_moved_for_order", {"order_id": "confirmed", "product_id": "product"}),
        ],
    ),
    "pieces that come back from orders that had none": (
        [
            "INSERT INTO stock_movements (product_id, kind, order_id, pieces) SELECT :product, 'returned', order_id, 1"
            " FROM unnest(ARRAY[CAST(:rejected AS uuid), :t_partial]) AS order_id",
            "UPDATE inventory SET on_hand = on_hand + 2 WHERE product_id = :product",
        ],
        [
            ("stock_moved_for_order", {"order_id": "rejected", "product_id": "product"}),
            ("stock_moved_for_order", {"order_id": "t_partial", "product_id": "product"}),
        ],
    ),
    "what an event says": (
        [
            """UPDATE events SET payload = payload || '{"total": "1.00"}' WHERE type = 'order.placed'"""
            " AND aggregate = 'order/' || CAST(:confirmed AS uuid)"
        ],
        [("event_differs", {"aggregate": "order_confirmed", "type": "type:order.placed"})],
    ),
    "what an event is about": (
        [
            "UPDATE events SET aggregate = 'order/' || CAST(:pending AS uuid) WHERE type = 'order.fulfilled'"
            " AND aggregate = 'order/' || CAST(:fulfilled AS uuid)"
        ],
        [
            ("event_missing", {"aggregate": "order_fulfilled", "type": "type:order.fulfilled"}),
            ("event_differs", {"aggregate": "order_pending", "type": "type:order.fulfilled"}),
        ],
    ),
    "an event is gone": (
        ["DELETE FROM events WHERE type = 'credits.moved' AND aggregate = 'transfer/' || CAST(:t_transfer AS uuid)"],
        [("event_missing", {"type": "type:credits.moved"})],
    ),
    "the reason of an adjustment": (
        ["UPDATE adjustments SET reason = 'a gift' WHERE id = :adjustment"],
        [("adjustment", {"adjustment_id": "adjustment", "transfer_id": "t_adjustment"})],
    ),
    "the account of an adjustment": (
        ["UPDATE adjustments SET account_id = :buyer WHERE id = :adjustment"],
        [("adjustment", {"adjustment_id": "adjustment", "transfer_id": "t_adjustment"})],
    ),
    "the event of an outbox row is gone": (
        [
            "DELETE FROM events USING outbox WHERE events.id = event_id"
            " AND outbox.aggregate = 'order/' || CAST(:pending AS uuid)"
        ],
        [("outbox_event", {}), ("event_missing", {"aggregate": "order_pending", "type": "type:order.placed"})],
    ),
    "the outbox row of a pending order is gone": (
        ["DELETE FROM outbox WHERE aggregate = 'order/' || CAST(:pending AS uuid)"],
        [("order_event", {"order_id": "pending"})],
    ),
    "an outbox row sleeps behind nothing": (
        [
            "UPDATE outbox SET waits = 'behind', available_at = 'infinity'"
            " WHERE aggregate = 'order/' || CAST(:pending AS uuid)"
        ],
        [("outbox_sleeper", {})],
    ),
    "a dead letter names another order's event": (
        [
            "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error)"
            " SELECT 999, id, 'order/x', type, 8, '' FROM events LIMIT 1"
        ],
        [("dead_letter_event", {"position": 999})],
    ),
}


@pytest.fixture
async def busy(api: Api) -> Busy:
    return await trade(api)


async def test_an_untouched_ledger_has_no_differences_and_every_row_is_checked(api: Api, busy: Busy) -> None:
    result, found = await run_audit(api.database)
    assert [difference.message for difference in found] == []
    for table in ("entries", "transfers", "adjustments", "orders", "order_items", "order_transitions", "outbox"):
        assert await api.scalar(f"SELECT count(*) FROM {table}") > 0, table
    assert result.rows_checked > 80
    assert set(busy.orders) >= {"pending", "confirmed", "fulfilled", "rejected", "cancelled", "awaiting_payment"}


@pytest.mark.parametrize("name", CORRUPTIONS)
async def test_each_change_is_found_and_named_and_nothing_else_is(api: Api, busy: Busy, name: str) -> None:
    statements, expected = CORRUPTIONS[name]
    ids = busy.ids()
    await corrupt(api.database, *statements, **ids)

    _, found = await run_audit(api.database)

    assert sorted(difference.kind for difference in found) == sorted(kind for kind, _ in expected), found
    for kind, subject in expected:
        wanted = {key: _value(ids, value) for key, value in subject.items()}
        assert any(
            difference.kind == kind and wanted.items() <= dict(difference.subject).items() for difference in found
        ), (kind, wanted, found)
    for difference in found:
        assert difference.expected != difference.found
        named = [value for key, value in difference.subject.items() if key.endswith("_id") and key != "event_id"]
        assert all(str(value) in difference.message for value in named), difference.message


async def test_operators_read_what_the_last_audit_found(api: Api, busy: Busy) -> None:
    missing = await api.get("/v1/operations/audit", by=busy.operator)
    assert_problem(missing, 404, "not_found")
    statements, _ = CORRUPTIONS["an entry's amount"]
    await corrupt(api.database, *statements, **busy.ids())
    result, found = await run_audit(api.database)
    async with UnitOfWork(api.database.write) as uow:
        await uow.audits.keep(result, found)
        await uow.commit()

    reply = await api.get("/v1/operations/audit", by=busy.operator)

    assert reply.status_code == 200
    assert reply.json() == {
        "started_at": result.started_at.isoformat().replace("+00:00", "Z"),
        "seconds": result.seconds,
        "rows_checked": result.rows_checked,
        "differences": 4,
        "sample": [difference.as_json() for difference in found],
    }


def test_every_kind_of_difference_is_planted_by_a_test() -> None:
    planted = {kind for _, expected in CORRUPTIONS.values() for kind, _ in expected}
    planted |= {kind.value for kind, _ in test_acknowledged.LOST.values()} | {"acknowledged_unreadable"}
    planted |= {kind for expected in TAMPERED.values() for kind, _ in expected} | {"audit_log_unsealed"}
    assert planted == {kind.value for kind in DifferenceKind}


def _value(ids: Mapping[str, Any], named: Any) -> Any:
    if not isinstance(named, str):
        return named
    value = named.partition(":")[2] if ":" in named else ids[named]
    return str(value) if isinstance(value, UUID) else value
