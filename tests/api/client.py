"""Sends requests to the application as different users, and reads what it left in the database."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from uuid import uuid4

import httpx2
from fastapi import FastAPI
from sqlalchemy import text

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.catalog.models import Product
from services.database import Database
from services.models import metadata
from services.outbox.engine.schemas import Outcome
from services.outbox.engine.service import Processor
from services.outbox.policy import RetryPolicy
from services.settings import Settings
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork
from services.users.models import User
from tests.factories import PASSWORD, make_product, make_user

FRESH = "fresh"
"""Asks for an Idempotency-Key that has not been used."""


class Api:
    """The application in this process with its lifespan running, and a client for it."""

    def __init__(self, app: FastAPI, client: httpx2.AsyncClient, settings: Settings, database: Database) -> None:
        self.app = app
        self.client = client
        self.settings = settings
        self.database = database
        self.tokens = Tokens.from_settings(settings)

    async def request(
        self,
        method: str,
        path: str,
        *,
        by: User | None = None,
        key: str | None = None,
        version: int | None = None,
        headers: Mapping[str, str] | None = None,
        **body: Any,
    ) -> httpx2.Response:
        """Send a request as the user `by`, with an Idempotency-Key and the version it read if given."""
        sent = dict(headers or {})
        if by is not None:
            sent["Authorization"] = f"Bearer {self.tokens.make(session_of(by.id))}"
        if key is not None:
            sent["Idempotency-Key"] = str(uuid4()) if key == FRESH else key
        if version is not None:
            sent["If-Match"] = f'"{version}"'
        return await self.client.request(method, path, headers=sent, **body)

    async def get(self, path: str, *, by: User | None = None, **more: Any) -> httpx2.Response:
        return await self.request("GET", path, by=by, **more)

    async def post(self, path: str, *, by: User | None = None, key: str | None = FRESH, **more: Any) -> httpx2.Response:
        """POST with a fresh Idempotency-Key, unless another one or None is given."""
        return await self.request("POST", path, by=by, key=key, **more)

    async def patch(self, path: str, *, by: User | None = None, version: int | None, **more: Any) -> httpx2.Response:
        return await self.request("PATCH", path, by=by, version=version, **more)

    async def delete(self, path: str, *, by: User | None = None, **more: Any) -> httpx2.Response:
        return await self.request("DELETE", path, by=by, **more)

    async def place(self, buyer: User, *lines: tuple[Product, int], **more: Any) -> dict[str, Any]:
        """Place an order of (product, quantity); return the reply."""
        reply = await self.post("/v1/orders", by=buyer, json=order_of(*lines, **more))
        assert reply.status_code == 201, reply.text
        placed: dict[str, Any] = reply.json()
        return placed

    async def approve(self, asked: httpx2.Response, by: User) -> None:
        """As a second operator, approve the top-up or reversal that this reply says is pending."""
        assert asked.status_code == 202, f"{asked.status_code}: {asked.text}"
        approved = await self.post(f"{asked.headers['location']}/approve", by=by)
        assert approved.status_code == 200, approved.text

    async def sign_in(self, email: str, password: str = PASSWORD) -> httpx2.Response:
        return await self.client.post("/v1/token", data={"username": email, "password": password})

    async def process(self) -> Outcome:
        """Do what a worker does: process one batch of the outbox."""
        processor = Processor[UnitOfWork](
            lambda: UnitOfWork(self.database.write),
            SUBSCRIPTIONS,
            retry=RetryPolicy(max_attempts=1, base=1.0, cap=1.0),
            batch_size=200,
        )
        outcome = await processor.run_once()
        assert (outcome.retried, outcome.buried) == (0, 0), outcome
        return outcome

    async def status_of(self, order_id: str) -> str:
        return str(await self.scalar("SELECT status FROM orders WHERE id = CAST(:id AS uuid)", id=order_id))

    async def credits_of(self, user: User) -> tuple[Decimal, Decimal]:
        """Posted and held credits."""
        statement = text("SELECT posted, held FROM accounts WHERE user_id = :user_id")
        async with self.database.engine.connect() as connection:
            posted, held = (await connection.execute(statement, {"user_id": user.id})).one()
        return posted, held

    async def stock_of(self, product: Product) -> tuple[int, int]:
        """Pieces on hand and reserved."""
        statement = text("SELECT on_hand, reserved FROM inventory WHERE product_id = :product_id")
        async with self.database.engine.connect() as connection:
            on_hand, reserved = (await connection.execute(statement, {"product_id": product.id})).one()
        return on_hand, reserved

    async def scalar(self, statement: str, **parameters: Any) -> Any:
        async with self.database.engine.connect() as connection:
            return (await connection.execute(text(statement), parameters)).scalar_one()

    async def execute(self, statement: str, **parameters: Any) -> None:
        """Commit a change past the application."""
        async with self.database.engine.begin() as connection:
            await connection.execute(text(statement), parameters)

    async def everything(self) -> dict[str, tuple[int, Decimal]]:
        """The number and a fingerprint of each table's rows, without the stored replies, the canary's row, and the
        audit log, to which refusals are written later.
        """
        left_out = {"idempotency_keys", "canaries", "audit_log"}
        tables = sorted(table.name for table in metadata.tables.values() if table.name not in left_out)
        union = " UNION ALL ".join(
            f"SELECT '{name}', count(*), coalesce(sum(hashtextextended(row::text, 0)::numeric), 0) FROM {name} AS row"
            for name in tables
        )
        async with self.database.engine.connect() as connection:
            return {name: (number, sum_) for name, number, sum_ in await connection.execute(text(union))}

    async def books(self) -> dict[str, Any]:
        """The operators' recount of the ledger and the stock."""
        async with UnitOfWork(self.database.write) as uow:
            return await uow.audits.books()

    async def assert_books_balance(self) -> None:
        counted = await self.books()
        assert all(value == 0 for value in counted.values()), counted

    async def shop(self, *, credits: str = "1000", **product: Any) -> tuple[User, User, Product]:  # noqa: A002
        """A buyer with credits, a seller, and a product of the seller."""
        buyer = await make_user(self.database, credits=credits, full_name="Bea Buyer")
        seller = await make_user(self.database, full_name="Sam Seller")
        return buyer, seller, await make_product(self.database, seller=seller, **product)


def http_scope(method: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """The ASGI scope of a request that is sent to the application itself, without a client in between."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("api.test", 80),
    }


def amounts(posted: str, held: str = "0") -> tuple[Decimal, Decimal]:
    """What `credits_of` gives: posted and held credits."""
    return Decimal(posted), Decimal(held)


def order_of(*lines: tuple[Product, Any], **more: Any) -> dict[str, Any]:
    return {"items": [{"product_id": product.id, "quantity": quantity} for product, quantity in lines], **more}


def assert_problem(
    reply: httpx2.Response, status: int, code: str, *, pointers: Sequence[str] | None = None
) -> dict[str, Any]:
    """RFC 9457 with a stable code and the request's id; `pointers` are the fields it must name."""
    assert reply.status_code == status, f"{reply.status_code}: {reply.text}"
    assert reply.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = reply.json()
    assert problem.keys() == {"type", "title", "status", "code", "detail", "request_id", "errors"}
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert problem["type"] == "about:blank"
    assert problem["title"]
    assert problem["detail"]
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert all(fault.keys() == {"detail", "pointer"} and fault["detail"] for fault in problem["errors"])
    if pointers is not None:
        assert sorted(fault["pointer"] for fault in problem["errors"]) == sorted(pointers), problem
    return problem
