"""A database with some of everything that operations work on, for requests that refer to it."""

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import text

from services.credits.corrections import service as adjustments
from services.credits.holds import service as holds
from services.credits.schemas import AdjustmentCreate, HoldCreate
from services.database import Database
from services.fields import new_id, now
from services.orders import service as orders
from services.orders.events import OrderPlaced
from services.orders.schemas import OrderCreate
from services.outbox.bulk import service as bulk
from services.outbox.bulk.models import BulkKind
from services.outbox.bulk.schemas import BulkFilter
from services.outbox.control.schemas import By
from services.outbox.engine.service import Processor
from services.outbox.policy import RetryPolicy
from services.outbox.testing import drain
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork
from services.users.models import User
from services.users.rights import Role
from services.users.roles.models import RoleRequestBase
from tests.factories import NOTHING_ALONE, make_admin, make_operator, make_product, make_user

EACH = 8

_BURY = """
    WITH dead AS (DELETE FROM outbox WHERE waits IS NULL RETURNING position, event_id, aggregate, type)
    INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error, fingerprint)
    SELECT *, 8, 'ValueError: no', 'abc' FROM dead RETURNING position
"""
_AUDITED = """
    INSERT INTO ledger_audits (started_at, seconds, rows_checked, differences, sample) VALUES (now(), 0.1, 10, 0, '[]')
"""


async def populate(database: Database, customer: User, other: User) -> dict[str, Sequence[Any]]:
    """Some of everything that has an id in a path: the ids, by the names of their parameters."""
    asking, admin = await make_operator(database), await make_admin(database)
    wanting = [await make_user(database) for _ in range(EACH)]
    product = await make_product(database, seller=other, stock=1000)
    confirmed = await _place(database, customer, product.id)
    await drain(Processor(lambda: UnitOfWork(database.write), SUBSCRIPTIONS, retry=RetryPolicy(1, 1, 1), batch_size=50))
    # The order placed last has a dead letter, and stays pending.
    placed = await _place(database, customer, product.id)
    async with database.engine.begin() as connection:
        positions = list((await connection.execute(text(_BURY))).scalars())
        await connection.execute(text(_AUDITED))
    async with UnitOfWork(database.write) as uow:
        until = now() + timedelta(days=1)
        wanted = HoldCreate(to_user_id=other.id, amount=Decimal(1), expires_at=until)
        held = [(await holds.hold(uow, customer, wanted, timedelta(days=2))).id for _ in range(EACH)]
        correction = AdjustmentCreate(user_id=customer.id, amount=Decimal(1), reason="wrong")
        asked = [(await adjustments.adjust(uow, asking, correction, NOTHING_ALONE)).id for _ in range(EACH)]
        roles = [RoleRequestBase(user_id=user.id, role=Role.seller) for user in wanting]
        requests = await uow.role_requests.bulk_create(roles, requested_by=admin.id, expires_at=until)
        late = OrderPlaced(order_id=new_id(), buyer_id=customer.id, total=Decimal(1))
        deferred = [uow.record(late, available_at=until) for _ in range(EACH)]
        letters, by = BulkFilter(type="none"), By("an operator", "a test")
        actions = [(await bulk.start(uow, BulkKind.replay, letters, by)).id for _ in range(EACH)]
        await uow.commit()
    return {
        "order_id": [*confirmed, *placed],
        "transfer_id": held,
        "adjustment_id": asked,
        "request_id": [one.id for one in requests],
        "position": positions,
        "event_id": deferred,
        "action_id": actions,
    }


async def _place(database: Database, buyer: User, product_id: int) -> list[Any]:
    wanted = OrderCreate.model_validate({"items": [{"product_id": product_id, "quantity": 2}]})
    patience = orders.Patience(timedelta(days=1), timedelta(days=1))
    async with UnitOfWork(database.write) as uow:
        placed = [(await orders.place(uow, buyer, wanted, patience)).id for _ in range(EACH)]
        await uow.commit()
    return placed
