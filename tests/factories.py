"""Committed rows to start a test with, and a counter for the SQL statements that are sent.

The functions write models directly, past services and events, and return them detached: read their columns, not their
relationships. Leave out values that do not matter to the test; unique ones are numbered.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import pytest
from argon2 import PasswordHasher
from sqlalchemy import Connection, event
from sqlalchemy.engine.interfaces import DBAPICursor, ExecutionContext
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from benchmarks.sessions import session_of
from services.catalog.models import Category, Inventory, Product
from services.credits.approval.rules import Limits
from services.credits.models import ISSUANCE, Account, Entry, Transfer, TransferKind, TransferState
from services.database import Database
from services.fields import MAX_CREDITS, new_id, now
from services.orders.models import Order, OrderItem, OrderStatus
from services.sql import Row, Sql, Statement
from services.users.models import User
from services.users.rights import Role
from services.users.sessions.models import UserSession

_numbers = count(1)

PASSWORD = "the password of every user"
HASHED = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
CONFIRMED = {"current_password": PASSWORD}
"""What a user of `make_user` sends to confirm who they are."""

UNLIMITED = Limits(MAX_CREDITS, MAX_CREDITS, timedelta(days=1), timedelta(0))
"""For tests that are about something else: operators do alone what they want."""
NOTHING_ALONE = Limits(Decimal(0), Decimal(0), timedelta(days=1), timedelta(0))
"""A second operator has to approve everything."""


async def make_user(
    database: Database,
    *,
    credits: str = "0",  # noqa: A002 -- the domain's word
    email: str | None = None,
    full_name: str = "Test User",
    role: Role = Role.customer,
    is_active: bool = True,
    hashed_password: str = HASHED,
) -> User:
    """A user with an account that holds `credits`, issued in a top-up, so that the books balance.

    They can sign in with `PASSWORD`, and have a session in which tests send their requests (`session_of`).
    """
    async with database.write() as session:
        user = User(
            email=email or f"user{next(_numbers)}@example.com",
            full_name=full_name,
            role=role,
            is_active=is_active,
            hashed_password=hashed_password,
        )
        session.add(user)
        await session.flush()
        # The session that tests send requests in.
        lasts = now() + timedelta(days=1)
        session.add(UserSession(id=session_of(user.id).session_id, user_id=user.id, expires_at=lasts))
        account = Account(user_id=user.id)
        session.add(account)
        await session.flush()
        if Decimal(credits):
            await _top_up(session, account, Decimal(credits))
        await session.commit()
    return user


async def make_operator(database: Database) -> User:
    """A user with the operator's role, without credits."""
    return await make_user(database, role=Role.operator, full_name="Test Operator")


async def make_admin(database: Database) -> User:
    """A user with the admin's role, without credits."""
    return await make_user(database, role=Role.admin, full_name="Test Admin")


async def make_category(database: Database, name: str | None = None) -> Category:
    async with database.write() as session:
        category = Category(name=name or f"Category {next(_numbers)}")
        session.add(category)
        await session.commit()
    return category


async def make_product(
    database: Database,
    *,
    seller: User | None = None,
    category: Category | None = None,
    stock: int = 100,
    price: str = "10.00",
    sku: str | None = None,
    name: str | None = None,
    is_active: bool = True,
) -> Product:
    """A product with `stock` pieces on hand, none reserved; seller and category are created if not given."""
    seller = seller or await make_user(database)
    category = category or await make_category(database)
    number = next(_numbers)
    async with database.write() as session:
        product = Product(
            seller_id=seller.id,
            category_id=category.id,
            sku=sku or f"SKU-{number}",
            name=name or f"Product {number}",
            price=Decimal(price),
            is_active=is_active,
        )
        session.add(product)
        await session.flush()
        session.add(Inventory(product_id=product.id, on_hand=stock))
        await session.commit()
    return product


async def make_order(
    database: Database,
    *,
    buyer: User,
    lines: Sequence[tuple[Product, int]],
    status: OrderStatus = OrderStatus.pending,
    reference: str | None = None,
) -> Order:
    """An order of (product, quantity) at today's prices: the row and its items, without history, hold or event."""
    order_id = new_id()
    items = [
        OrderItem(order_id=order_id, line=line, product_id=product.id, quantity=quantity, unit_price=product.price)
        for line, (product, quantity) in enumerate(lines, start=1)
    ]
    order = Order(
        id=order_id,
        buyer_id=buyer.id,
        status=status,
        reference=reference,
        total=sum((item.unit_price * item.quantity for item in items), Decimal(0)),
        item_count=len(items),
        expires_at=now() + timedelta(days=1) if status is OrderStatus.awaiting_payment else None,
    )
    async with database.write() as session:
        session.add(order)
        await session.flush()
        session.add_all(items)
        await session.commit()
    return order


async def _top_up(session: AsyncSession, account: Account, amount: Decimal) -> None:
    issuance = (await session.exec(select(Account).where(Account.system_name == ISSUANCE).with_for_update())).one()
    transfer = Transfer(
        debit_account_id=issuance.id,
        credit_account_id=account.id,
        amount=amount,
        kind=TransferKind.top_up,
        state=TransferState.posted,
        posted_amount=amount,
        # It has no event, so it was before the first month of the log: otherwise an audit would miss the event.
        resolved_at=now() - timedelta(days=3650),
    )
    session.add(transfer)
    await session.flush()
    for side, signed in ((issuance, -amount), (account, amount)):
        side.posted += signed
        side.version += 1
        session.add(
            Entry(
                account_id=side.id,
                version=side.version,
                transfer_id=transfer.id,
                amount=signed,
                balance=side.posted,
            )
        )


class Recorder:
    """The SQL statements sent through an engine, in order; `len()` counts them.

    A statement sent with many parameter sets counts once, a savepoint's commands count, BEGIN and COMMIT do not.
    """

    def __init__(self) -> None:
        self.statements: list[str] = []

    def __len__(self) -> int:
        return len(self.statements)

    def __str__(self) -> str:
        return "\n".join(self.statements)

    def record(
        self,
        _connection: Connection,
        _cursor: DBAPICursor,
        statement: str,
        _parameters: object,
        _context: ExecutionContext | None,
        _executemany: bool,
    ) -> None:
        self.statements.append(statement)


@contextmanager
def count_statements(engine: AsyncEngine) -> Iterator[Recorder]:
    """Record what is sent through `engine` inside the block."""
    recorder = Recorder()
    event.listen(engine.sync_engine, "before_cursor_execute", recorder.record)
    try:
        yield recorder
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", recorder.record)


@contextmanager
def plain_sql(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The plain SQL that is run inside the block by any unit of work: one text for each round trip."""
    ran: list[str] = []
    run, fetch = Sql.run, Sql._fetch

    async def spy_on_run(self: Sql, statement: Statement, **parameters: Any) -> int:
        ran.append(statement.text)
        return await run(self, statement, **parameters)

    async def spy_on_fetch(
        self: Sql, sql: str, arguments: tuple[Any, ...], limit: float | None = None
    ) -> Sequence[Row]:
        ran.append(sql)
        return await fetch(self, sql, arguments, limit)

    with monkeypatch.context() as patch:
        patch.setattr(Sql, "run", spy_on_run)
        patch.setattr(Sql, "_fetch", spy_on_fetch)
        yield ran
