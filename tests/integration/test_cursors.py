"""Whatever values rows have, a client can turn the pages of every list: no row is missing, and none comes twice."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlmodel import col, delete, select

from services.audit.log.repository import AUDIT_LOG
from services.catalog.models import Product
from services.catalog.repository import CATEGORIES, OWN_PRODUCTS, PRODUCTS
from services.credits.corrections.repository import ADJUSTMENTS
from services.credits.models import Account
from services.credits.schemas import Party
from services.credits.statement.repository import _LINES, ENTRIES
from services.credits.transfers.repository import HOLDS, TRANSFERS
from services.database import Database, open_database
from services.fields import MAX_BIGINT, MAX_CREDITS
from services.orders.refunds.repository import REFUNDS
from services.orders.repository import ORDERS, SALES
from services.outbox.bulk.repository import BULK_ACTIONS
from services.outbox.control.repository import DEAD_LETTERS, DEFERRED
from services.outbox.inspection.repository import BY_AGGREGATE, READY, TIMED
from services.query import Listing, PageQuery, Rows
from services.settings import Settings
from services.unit_of_work import UnitOfWork
from services.users.repository import USERS
from services.users.roles.repository import ROLE_REQUESTS
from tests.factories import make_product, make_user
from tests.integration.test_list_plans import CASES

NIL = UUID(int=0)


@dataclass(frozen=True)
class Row:
    """What a row has. Each kind of row takes what its list may be sorted by."""

    words: str
    price: Decimal
    at: datetime
    number: int
    uuid: UUID


WORDS = st.one_of(
    st.sampled_from(
        ["\N{GRINNING FACE}" * 200, "\x01" * 200, "\x7f\x9f\u2028\ufeff", "'\"\\", "a", "A", "é", "e\u0301"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200),
)
FIRST, LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)
TIMES = st.sampled_from(
    [FIRST + timedelta(days=1), LAST - timedelta(days=1), datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC)]
) | st.timedeltas(timedelta(0), timedelta(days=1)).map(lambda after: datetime(2026, 1, 1, tzinfo=UTC) + after)
PRICES = st.sampled_from([Decimal("0.01"), MAX_CREDITS]) | st.decimals(1, 3, places=2)
NUMBERS = st.sampled_from([1, 2**53 + 1, MAX_BIGINT]) | st.integers(1, MAX_BIGINT)
UUIDS = st.sampled_from([NIL, UUID(int=2**128 - 1)]) | st.uuids()
ROWS = st.lists(
    st.builds(Row, WORDS, PRICES, TIMES, NUMBERS, UUIDS),
    min_size=1,
    max_size=6,
    unique_by=(lambda row: row.number, lambda row: row.uuid),
)

ORDER, TRANSFER = UUID(int=1), UUID(int=2)

_INSERTS: dict[str, Sequence[str]] = {
    "products": (
        "INSERT INTO products (seller_id, category_id, sku, name, price, created_at)"
        " SELECT :user, 1, 'S' || n, words, price, at FROM given",
        "INSERT INTO categories (id, name) OVERRIDING SYSTEM VALUE VALUES (1, 'one')",
        "INSERT INTO inventory (product_id) SELECT id FROM products",
    ),
    "categories": ("INSERT INTO categories (name) SELECT left(words, 199) || n FROM given",),
    "users": (
        "INSERT INTO users (email, full_name, hashed_password, created_at)"
        " SELECT words || n, words, '!', at FROM given",
    ),
    "orders": (
        "INSERT INTO orders (id, buyer_id, status, total, item_count) SELECT uuid, :user, 'pending', 1, 1 FROM given",
        "INSERT INTO order_sellers (seller_id, order_id) SELECT :user, id FROM orders",
    ),
    "refunds": (
        f"INSERT INTO refunds (id, order_id, amount, requested_by) SELECT uuid, '{ORDER}', 1, :user FROM given",
    ),
    "dead letters": (
        "INSERT INTO dead_letters (position, event_id, aggregate, type, attempts, error)"
        " SELECT number, uuid, 'a/1', 'a', 1, '' FROM given",
    ),
    "deferred": (
        "INSERT INTO outbox (position, event_id, aggregate, type, available_at, waits) OVERRIDING SYSTEM VALUE"
        " SELECT number, uuid, 'a/1', 'a', at, 'asked' FROM given",
    ),
    "waiting": (
        "INSERT INTO outbox (position, event_id, aggregate, type, available_at, waits) OVERRIDING SYSTEM VALUE"
        " SELECT number, uuid, left(words, 99), 'a', at, 'retry' FROM given",
    ),
    "adjustments": (
        "INSERT INTO adjustments (id, account_id, amount, reason, state, needs_approval, requested_by)"
        " SELECT uuid, :account, 1, 'because', 'pending', true, :user FROM given",
    ),
    "transfers": (
        "INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, expires_at)"
        " SELECT uuid, issuance.id, :account, 1, 'transfer', 'pending', now()"
        " FROM given, (SELECT id FROM accounts WHERE user_id IS NULL LIMIT 1) AS issuance",
    ),
    "entries": (
        "INSERT INTO entries (account_id, version, transfer_id, amount, balance)"
        f" SELECT :account, number, '{TRANSFER}', 1, 1 FROM given",
        "INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount,"
        f" resolved_at) VALUES ('{TRANSFER}', -1, :account, 1, 'top_up', 'posted', 1, now())",
    ),
}
"""How the rows are written. The first statement of each writes the list's own rows."""

_GIVEN = """
    WITH given AS (
        SELECT * FROM unnest(
            CAST(:words AS text[]), CAST(:prices AS numeric[]), CAST(:ats AS timestamptz[]), CAST(:numbers AS bigint[]),
            CAST(:uuids AS uuid[])
        ) WITH ORDINALITY AS given(words, price, at, number, uuid, n)
    )
"""


@dataclass(frozen=True)
class Case:
    listing: Listing[Any]
    table: str
    read: Callable[[UnitOfWork, PageQuery, int, int], Awaitable[Rows[Any]]]
    """With the ids of the user and of the account."""


LISTS = {
    "products": Case(PRODUCTS, "products", lambda uow, wanted, *_: uow.products.page(wanted)),
    "categories": Case(CATEGORIES, "categories", lambda uow, wanted, *_: uow.categories.list_page(CATEGORIES, wanted)),
    "users": Case(USERS, "users", lambda uow, wanted, *_: uow.users.list_page(USERS, wanted)),
    "orders": Case(ORDERS, "orders", lambda uow, wanted, *_: uow.orders.page(wanted)),
    "orders of a buyer": Case(ORDERS, "orders", lambda uow, wanted, user, _: uow.orders.page(wanted, buyer_id=user)),
    "products of a seller": Case(
        OWN_PRODUCTS, "products", lambda uow, wanted, user, _: uow.products.of_seller(user, wanted)
    ),
    "transfers": Case(
        TRANSFERS, "transfers", lambda uow, wanted, user, _: uow.transfers.page(user, Party.recipient, wanted)
    ),
    "holds": Case(
        HOLDS, "transfers", lambda uow, wanted, user, _: uow.transfers.page(user, Party.recipient, wanted, holds=True)
    ),
    "orders of a seller": Case(SALES, "orders", lambda uow, wanted, user, _: uow.orders.page(wanted, seller_id=user)),
    "refunds": Case(REFUNDS, "refunds", lambda uow, wanted, *_: uow.refunds.page(ORDER, wanted)),
    "dead letters": Case(DEAD_LETTERS, "dead letters", lambda uow, wanted, *_: uow.control.dead_letters(wanted)),
    "deferred": Case(DEFERRED, "deferred", lambda uow, wanted, *_: uow.control.deferred(wanted)),
    "events that wait for a time": Case(TIMED, "waiting", lambda uow, wanted, *_: uow.inspection.timed("a", wanted)),
    "events that wait, by aggregate": Case(
        BY_AGGREGATE, "waiting", lambda uow, wanted, *_: uow.inspection.waiting(wanted)
    ),
    "adjustments": Case(
        ADJUSTMENTS, "adjustments", lambda uow, wanted, *_: uow.adjustments.list_page(ADJUSTMENTS, wanted)
    ),
    "a statement": Case(ENTRIES, "entries", lambda uow, wanted, user, _: uow.statements.page(user, wanted)),
    "an export": Case(
        _LINES, "entries", lambda uow, wanted, _, account: uow.statements.lines(account, MAX_BIGINT, wanted)
    ),
}


def test_every_list_is_walked() -> None:
    # That of the plans is compared with all lists that there are.
    # Those that can be sorted by their ids only are walked like the others.
    by_id = {id(ROLE_REQUESTS), id(AUDIT_LOG), id(BULK_ACTIONS), id(READY)}
    assert {id(case.listing) for case in LISTS.values()} | by_id == {id(case.listing) for case in CASES.values()}


async def _write(uow: UnitOfWork, table: str, rows: Sequence[Row], user: int, account: int) -> None:
    connection = await uow.session.connection()
    # Without triggers and foreign keys: these rows need no others.
    await connection.execute(text("SET LOCAL session_replication_role = replica"))
    ids = {"user": user, "account": account}
    own, *others = _INSERTS[table]
    values: dict[str, list[Any]] = {
        "words": [row.words for row in rows],
        "prices": [row.price for row in rows],
        "ats": [row.at for row in rows],
        "numbers": [row.number for row in rows],
        "uuids": [row.uuid for row in rows],
    }
    for statement in (_GIVEN + own, *others):
        parameters = {**ids, **values}
        named = {name: value for name, value in parameters.items() if f":{name}" in statement}
        await connection.execute(text(statement), named)


async def _walk(database: Database, name: str, rows: Sequence[Row], user: int, account: int) -> None:
    case = LISTS[name]
    key = case.listing.key.column.key
    async with UnitOfWork(database.write) as uow:
        await _write(uow, case.table, rows, user, account)
        for sort in (direction + field for field in case.listing.sorts for direction in ("", "-")):
            whole = await case.read(uow, PageQuery(sort=sort, limit=200), user, account)
            expected = [getattr(row, key) for row in whole.data]
            assert len(set(expected)) == len(expected) >= len(rows)
            for limit in (1, 2):
                seen: list[Any] = []
                cursor = None
                while not seen or cursor is not None:
                    page = await case.read(uow, PageQuery(sort=sort, limit=limit, cursor=cursor), user, account)
                    seen += [getattr(row, key) for row in page.data]
                    cursor = page.next_cursor
                    assert len(seen) <= len(expected), (sort, limit)
                assert seen == expected, (sort, limit)


@pytest.mark.parametrize("name", LISTS)
def test_pages_of_one_and_two_rows_show_every_row_once_whatever_is_stored(
    settings_of_superuser: Settings, name: str
) -> None:
    with asyncio.Runner() as runner:

        async def opened() -> tuple[Any, Database, int, int]:
            context = open_database(settings_of_superuser, "test")
            database = await context.__aenter__()
            user = await make_user(database)
            async with UnitOfWork(database.write) as uow:
                account = (await uow.session.exec(select(Account.id).where(col(Account.user_id) == user.id))).one()
            return context, database, user.id, account

        context, database, user, account = runner.run(opened())

        @hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        @given(rows=ROWS)
        def walk(rows: list[Row]) -> None:
            runner.run(_walk(database, name, rows, user, account))

        try:
            walk()
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.mark.parametrize("sort", ["name", "-price", "id"])
async def test_a_page_continues_where_it_was_if_its_last_row_changes_or_vanishes(database: Database, sort: str) -> None:
    seller = await make_user(database)
    made = [
        (await make_product(database, seller=seller, name="\N{GRINNING FACE}" * (number + 1), price=f"{9 - number}")).id
        for number in range(6)
    ]
    async with UnitOfWork(database.write) as uow:
        first = await uow.products.page(PageQuery(sort=sort, limit=2))
        await uow.session.exec(delete(Product).where(col(Product.id) == made[1]))
        second = await uow.products.page(PageQuery(sort=sort, limit=2, cursor=first.next_cursor))
        # It is before the place now, and then after it.
        await uow.products.bulk_update({made[3]: {"name": "\N{GRINNING FACE}", "price": Decimal(9)}})
        third = await uow.products.page(PageQuery(sort=sort, limit=9, cursor=second.next_cursor))
    assert [[row.id for row in page.data] for page in (first, second, third)] == [made[:2], made[2:4], made[4:]]
