"""A database with the application on it, requests to it, and everything that they leave, in words that can be compared.

Two worlds begin with the same rows. What differs by nature, such as ids and times, is named by where it first appears.
"""

import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx2
from sqlalchemy import text

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.app import create_app
from services.database import Database, open_database
from services.models import metadata
from services.outbox.engine.service import Processor
from services.settings import Settings
from services.subscriptions import SUBSCRIPTIONS
from services.unit_of_work import UnitOfWork
from tests.concurrency.groups.wishes import (
    CHANGES,
    CLOSED,
    CREDITS,
    DELETED,
    INACTIVE,
    POISON,
    PRODUCTS,
    UNKNOWN,
    USERS,
    Caller,
    Meanwhile,
    Wish,
)
from tests.concurrency.ticks import LATER
from tests.factories import make_category, make_product, make_user

HISTORY = (
    "idempotency_keys",
    "outbox",
    "dead_letters",
    "events",
    "entries",
    "adjustments",
    "refund_lines",
    "refunds",
    "unapproved_movements",
    "transfers",
    "order_sellers",
    "order_transitions",
    "order_items",
    "orders",
)
"""What a test leaves."""

_UNORDERED = {"order_transitions": ("id",), "events": ("position", "transaction_id"), "outbox": ("position",)}
"""Columns whose values depend on how many transactions and rows there were before."""

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)")
_HEADERS = ("content-type", "location", "etag", "idempotency-replayed", "retry-after", "www-authenticate", "allow")

_POISONOUS = (
    f"ALTER TABLE transfers ADD CONSTRAINT no_poison CHECK (note <> '{POISON}' AND amount <> 6.66)",
    f"ALTER TABLE orders ADD CONSTRAINT no_poison CHECK (reference <> '{POISON}')",
)

_ISSUE = """
    WITH new AS (
        SELECT gen_random_uuid() AS transfer, accounts.id AS account, CAST(credits AS numeric) AS amount,
            row_number() OVER (ORDER BY place) AS number,
            sum(CAST(credits AS numeric)) OVER (ORDER BY place) AS total
        FROM unnest(CAST(:users AS bigint[]), CAST(:credits AS text[])) WITH ORDINALITY AS given(id, credits, place)
        JOIN accounts ON accounts.user_id = given.id WHERE CAST(credits AS numeric) > 0
    ), issuance AS (SELECT id FROM accounts WHERE system_name = 'issuance'), issued AS (
        INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount, resolved_at)
        SELECT transfer, issuance.id, account, amount, 'top_up', 'posted', amount, now() FROM new, issuance
    ), entered AS (
        INSERT INTO entries (account_id, version, transfer_id, amount, balance)
        SELECT account, 1, transfer, amount, amount FROM new
        UNION ALL SELECT issuance.id, number, transfer, -amount, -total FROM new, issuance
    ), balanced AS (
        UPDATE accounts SET posted = amount, version = 1 FROM new WHERE accounts.id = account
    )
    UPDATE accounts SET posted = -(SELECT sum(amount) FROM new), version = (SELECT count(*) FROM new)
    WHERE id = (SELECT id FROM issuance)
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got, byte for byte, but with names instead of ids and times."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Names:
    """A name for each id that was generated, by where it was first seen."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def __contains__(self, one: str) -> bool:
        return one in self._names

    def give(self, one: str, name: str) -> None:
        self._names.setdefault(one, name)

    def within(self, said: str) -> str:
        """The text with each id replaced by its name, and each time by its number within the text."""
        times: dict[str, str] = {}
        named = _UUID.sub(lambda found: self._names.get(found[0], found[0]), said)
        return _TIME.sub(lambda found: times.setdefault(found[0], f"<time {len(times)}>"), named)

    def answer(self, number: int, reply: httpx2.Response) -> Answer:
        """The answer to request `number`; what it names for the first time gets its name from it."""
        body = reply.content.decode()
        for place, one in enumerate(dict.fromkeys(_UUID.findall(body))):
            self.give(one, f"<{number}.{place}>")
        headers = tuple((name, self.within(reply.headers[name])) for name in _HEADERS if name in reply.headers)
        return Answer(reply.status_code, headers, self.within(body).encode())


@dataclass
class World:
    """One database with the application on it, in this process."""

    name: str
    database: Database
    client: httpx2.AsyncClient
    tokens: Tokens
    expired: Tokens
    users: list[int] = field(default_factory=list)
    products: list[int] = field(default_factory=list)
    stock: list[int] = field(default_factory=list)

    async def populate(self) -> None:
        """The cast: the users and products of `wishes`."""
        people = [
            await make_user(self.database, email=f"user{number}@example.com", full_name=f"User {number}")
            for number in USERS
        ]
        category = await make_category(self.database, "Things")
        made = [
            await make_product(
                self.database, seller=people[seller], category=category, stock=0, price=price, sku=f"S-{number}",
                name=f"Product {number}",
            )
            for number, (seller, price, _, _) in enumerate(PRODUCTS)
        ]  # fmt: skip
        self.users, self.products = [user.id for user in people], [product.id for product in made]
        await self.execute(*_POISONOUS)

    async def reset(self) -> None:
        """Forget all that was ordered and moved, and begin again with the same credits, prices and stock."""
        begin = [
            "SET LOCAL session_replication_role = replica",
            f"TRUNCATE {', '.join(HISTORY)}",
            "UPDATE accounts SET posted = 0, held = 0, version = 0, closed_at = NULL",
            "UPDATE users SET is_active = true, deleted_at = NULL",
            "SET LOCAL session_replication_role = origin",
        ]
        async with self.database.engine.begin() as connection:
            for statement in begin:
                await connection.execute(text(statement))
            for number, (_, price, pieces, is_active) in enumerate(PRODUCTS):
                values = {"id": self.products[number], "price": Decimal(price), "pieces": pieces, "active": is_active}
                await connection.execute(
                    text("UPDATE products SET price = :price, is_active = :active, version = 1 WHERE id = :id"), values
                )
                await connection.execute(
                    text("UPDATE inventory SET on_hand = :pieces, reserved = 0 WHERE product_id = :id"), values
                )
            await connection.execute(text(_ISSUE), {"users": self.users, "credits": list(CREDITS)})
            for statement, number in (
                ("UPDATE accounts SET closed_at = now() WHERE user_id = :id", CLOSED),
                ("UPDATE users SET is_active = false WHERE id = :id", INACTIVE),
                ("UPDATE users SET deleted_at = now() WHERE id = :id", DELETED),
            ):
                await connection.execute(text(statement), {"id": self.users[number]})

    async def meanwhile(self, change: Meanwhile) -> None:
        """Commit a change past the application, or process the outbox as a worker does."""
        if change.what == "process":
            await self.process()
        elif change.what != "nothing":
            values = {"user": self.users[change.number], "product": self.products[change.number]}
            statement = text(CHANGES[change.what])
            async with self.database.engine.begin() as connection:
                await connection.execute(statement, {name: values[name] for name in statement.compile().params})

    async def process(self) -> None:
        worker = Processor[UnitOfWork](
            lambda: UnitOfWork(self.database.write), SUBSCRIPTIONS, retry=LATER, batch_size=200
        )
        outcome = await worker.run_once()
        assert (outcome.retried, outcome.buried) == (0, 0), outcome

    async def send(self, number: int, wish: Wish) -> httpx2.Response:
        """Send request `number`, which is also its request id."""
        headers = {"X-Request-Id": f"request-{number}", "Content-Type": "application/json"}
        match wish.caller:
            case Caller.token:
                headers["Authorization"] = f"Bearer {self.tokens.make(session_of(self.users[wish.by]))}"
            case Caller.expired:
                headers["Authorization"] = f"Bearer {self.expired.make(session_of(self.users[wish.by]))}"
            case Caller.unknown:
                headers["Authorization"] = f"Bearer {self.tokens.make(session_of(UNKNOWN))}"
            case Caller.garbage:
                headers["Authorization"] = "Bearer garbage"
            case Caller.missing:
                pass
        if wish.key is not None:
            headers["Idempotency-Key"] = f"fresh-{number}" if wish.key == "*" else wish.key
        return await self.client.post(wish.path, headers=headers, content=wish.content(self.users, self.products))

    async def execute(self, *statements: str) -> None:
        async with self.database.engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))

    async def books(self) -> Mapping[str, Any]:
        """The operators' recount of the ledger and the stock."""
        async with UnitOfWork(self.database.write) as uow:
            return await uow.audits.books()

    async def group_sizes(self) -> Counter[int]:
        """How many transactions have stored 1, 2, 3, ... replies."""
        grouped = "SELECT count(*) FROM idempotency_keys GROUP BY xmin::text"
        async with self.database.engine.connect() as connection:
            return Counter((await connection.execute(text(grouped))).scalars())

    async def everything(self, names: Names) -> dict[str, list[str]]:
        """Each row of each table, with names instead of ids and times; `names` are those of the replies."""
        # Refusals are counted, and written once a while.
        left_out = {"canaries", "log_origin", "audit_log", "audit_log_head"}
        tables = [table for table in metadata.sorted_tables if table.name not in left_out]
        found: dict[str, list[dict[str, Any]]] = {}
        async with self.database.engine.connect() as connection:
            for table in tables:
                rows = await connection.execute(text(_dumping(table.name)))
                found[table.name] = [json.loads(row) for row in rows.scalars()]
        _name_holds(names, found["transfers"])
        events = sorted(found["events"], key=lambda row: row["position"])
        _name_events(names, events)
        # Orders and transfers are committed side by side.
        order: dict[str, list[str]] = {}
        for row in events:
            kind = row["aggregate"].partition("/")[0]
            order.setdefault(f"events of {kind}", []).append(f"{names.within(row['aggregate'])} {row['type']}")
        for table_name, columns in _UNORDERED.items():
            for row in found[table_name]:
                for column in columns:
                    del row[column]
        named = {
            table_name: sorted(names.within(json.dumps(row, sort_keys=True)) for row in rows)
            for table_name, rows in found.items()
        }
        return {**named, **order}


def _dumping(table: str) -> str:
    if table == "idempotency_keys":
        body = "jsonb_build_object('body', convert_from(body, 'UTF8'))"
        return f"SELECT (to_jsonb(one) || {body})::text FROM idempotency_keys AS one"
    return f"SELECT to_jsonb(one)::text FROM {table} AS one"


def _name_holds(names: Names, transfers: Sequence[dict[str, Any]]) -> None:
    """Holds and other movements that no reply names: by their order, or by their payee for those at the start."""
    for row in transfers:
        about = names.within(row["order_id"]) if row["order_id"] else "nothing"
        names.give(row["id"], f"<{row['kind']} about {about} to {row['credit_account_id']}>")


def _name_events(names: Names, events: Sequence[dict[str, Any]]) -> None:
    numbers: Counter[str] = Counter()
    for row in events:
        numbers[row["aggregate"]] += 1
        names.give(row["id"], f"<event {numbers[row['aggregate']]} of {names.within(row['aggregate'])}>")


@asynccontextmanager
async def open_world(name: str, settings: Settings) -> AsyncIterator[World]:
    """The application with these settings, its lifespan running, and the cast in its database."""
    app = create_app(settings)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        open_database(settings, "world") as database,
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://api.test") as client,
    ):
        secret = settings.secret_key.get_secret_value()
        world = World(
            name,
            database,
            client,
            Tokens.from_settings(settings),
            Tokens(secret, audience=f"{settings.environment.value}/{settings.database_schema}", ttl=-3600),
        )
        await world.populate()
        yield world
