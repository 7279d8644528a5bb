"""A busy ledger, made through the API, and what an audit says about it."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.audit.schemas import AuditResult, Difference
from services.audit.service import audit
from services.catalog.models import Product
from services.database import Database
from services.fields import new_id
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.api.client import Api
from tests.factories import make_operator, make_product

# A movement with its entries and balances, as the ledger writes them. Its event was in a month of the log that is gone.
_MOVE = """
    WITH moved AS (
        UPDATE accounts SET posted = posted + change.amount, version = version + 1
        FROM (VALUES (CAST(:debit AS bigint), -CAST(:amount AS numeric)), (:credit, CAST(:amount AS numeric)))
            AS change(id, amount)
        WHERE accounts.id = change.id RETURNING accounts.id, version, change.amount, posted
    ), written AS (
        INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, reverses,
            note, resolved_at)
        VALUES (:id, :debit, :credit, :held, :kind, 'posted', :amount, :reverses, :note, '2001-01-01')
    )
    INSERT INTO entries (account_id, version, transfer_id, amount, balance)
    SELECT id, version, CAST(:id AS uuid), amount, posted FROM moved
"""

_ADJUST = """
    INSERT INTO adjustments
        (id, account_id, amount, reason, state, needs_approval, requested_by, transfer_id, decided_at)
    VALUES (:id, :account, :amount, 'found in the till', 'applied', false, :operator, :transfer, '2001-01-01')
"""


@dataclass
class Busy:
    """The users, products and more after a day of trading; orders and transfers by their outcome."""

    api: Api
    buyer: User
    seller: User
    operator: User
    product: Product
    orders: dict[str, str]
    accounts: dict[str, int]
    transfers: dict[str, UUID]
    adjustment: UUID

    async def move(self, name: str, debit: str, credit: str, amount: str, **more: Any) -> UUID:
        """Write a posted transfer between two accounts, with entries and balances."""
        values = {"id": new_id(), "held": Decimal(amount), "kind": "transfer", "reverses": None, "note": "", **more}
        debit_id, credit_id = self.accounts[debit], self.accounts[credit]
        await self.api.execute(_MOVE, debit=debit_id, credit=credit_id, amount=Decimal(amount), **values)
        self.transfers[name] = values["id"]
        return UUID(str(values["id"]))

    def ids(self) -> dict[str, Any]:
        """Every id by a name: accounts and orders by theirs, transfers with `t_` in front."""
        orders = {name: UUID(order_id) for name, order_id in self.orders.items()}
        transfers = {f"t_{name}": transfer_id for name, transfer_id in self.transfers.items()}
        others = {"product": self.product.id, "operator": self.operator.id, "adjustment": self.adjustment}
        others |= {f"order_{name}": f"order/{order_id}" for name, order_id in self.orders.items()}
        return {**orders, **transfers, **self.accounts, **others}


async def trade(api: Api) -> Busy:
    """Orders of each status, top-ups, transfers, a partial posting, a reversal, an adjustment, an expired hold."""
    buyer, seller, product = await api.shop(price="10.00", stock=20)
    operator = await make_operator(api.database)
    other = await make_product(api.database, price="0.99", stock=1000)
    lines = ((product, 2), (other, 3))
    orders: dict[str, str] = {}
    for name in ("confirmed", "fulfilled", "returned"):
        orders[name] = (await api.place(buyer, *lines))["id"]
    orders["rejected"] = (await api.place(buyer, (product, 50)))["id"]
    await api.process()
    orders["pending"] = (await api.place(buyer, *lines))["id"]
    orders["cancelled"] = (await api.place(buyer, *lines))["id"]
    orders["awaiting_payment"] = (await api.place(buyer, (other, 1000)))["id"]
    for name, verb, by in (
        ("fulfilled", "fulfil", operator), ("returned", "cancel", buyer), ("cancelled", "cancel", buyer)
    ):  # fmt: skip
        reply = await api.post(f"/v1/orders/{orders[name]}/{verb}", by=by, json={})
        assert reply.status_code == 200, reply.text
    async with api.database.engine.begin() as connection:
        await note_refund(connection, UUID(orders["returned"]))
    topped = await api.post("/v1/top-ups", by=operator, json={"user_id": seller.id, "amount": "25.50"})
    moved = await api.post("/v1/transfers", by=buyer, json={"to_user_id": seller.id, "amount": "7.25"})
    assert (topped.status_code, moved.status_code) == (201, 201)

    accounts = {"issuance": await api.scalar("SELECT id FROM accounts WHERE system_name = 'issuance'")}
    for name, user_id in (("buyer", buyer.id), ("seller", seller.id), ("other", other.seller_id)):
        accounts[name] = await api.scalar("SELECT id FROM accounts WHERE user_id = :id", id=user_id)
    transfers = {"transfer": UUID(moved.json()["id"]), "top_up": UUID(topped.json()["id"])}
    busy = Busy(api, buyer, seller, operator, product, orders, accounts, transfers, new_id())
    await busy.move("partial", "buyer", "seller", "1.50", held=Decimal("4.00"))
    await busy.move("reversal", "seller", "buyer", "7.25", kind="reversal", reverses=transfers["transfer"])
    adjusted = await busy.move("adjustment", "issuance", "seller", "3.00", kind="adjustment", note="found in the till")
    await api.execute(
        _ADJUST, id=busy.adjustment, account=accounts["seller"], amount=Decimal("3.00"),
        operator=operator.id, transfer=adjusted,
    )  # fmt: skip
    transfers["expired"] = new_id()
    await api.execute(
        "INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, created_at, expires_at,"
        " resolved_at) VALUES (:id, :debit, :credit, 5, 'transfer', 'expired', '2001-01-01', now(), '2001-01-02')",
        id=transfers["expired"], debit=accounts["buyer"], credit=accounts["seller"],
    )  # fmt: skip
    return busy


async def note_refund(connection: AsyncConnection, order_id: UUID) -> None:
    """Note a refund on a cancelled order."""
    refunded = "SELECT coalesce(sum(posted_amount), 0) FROM transfers WHERE kind = 'refund' AND order_id = :id"
    await connection.execute(text(f"UPDATE orders SET refunded = ({refunded}) WHERE id = :id"), {"id": order_id})
    returned = "UPDATE order_items SET returned = quantity FROM orders WHERE orders.id = order_id AND refunded > 0"
    await connection.execute(text(f"{returned} AND orders.id = :id"), {"id": order_id})


async def corrupt(database: Database, *statements: str, **ids: Any) -> None:
    """Change rows behind the ledger's back, without triggers and foreign keys."""
    async with database.engine.begin() as connection:
        await connection.execute(text("SET LOCAL session_replication_role = replica"))
        for statement in statements:
            prepared = text(statement)
            changed = await connection.execute(prepared, {name: ids[name] for name in prepared.compile().params})
            assert changed.rowcount != 0, f"changes nothing: {statement}"


async def run_audit(database: Database) -> tuple[AuditResult, list[Difference]]:
    found: list[Difference] = []
    async with UnitOfWork(database.read) as uow:
        result = await audit(uow, 60.0, found.append)
    assert result.differences == len(found)
    return result, found
