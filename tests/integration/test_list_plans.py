"""However many rows there are, a page of a list reads about as many as it shows, or examines a limited number.

Every sort and every filter that a list offers is tried, with values that have most rows, few or none, with plans for
the given values and for any values. Most rows of the big buyer and seller are old: see `benchmarks/many.py`.
"""

import pkgutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import combinations
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

import services
import services.query
import services.walks
from benchmarks import many
from services.audit.log.repository import AUDIT_LOG
from services.catalog.repository import CATEGORIES, OWN_PRODUCTS, PRODUCTS
from services.credits.corrections.repository import ADJUSTMENTS
from services.credits.schemas import Party
from services.credits.statement.repository import _LINES, ENTRIES
from services.credits.transfers.repository import HOLDS, TRANSFERS
from services.database import Database, open_database
from services.orders.refunds.repository import REFUNDS
from services.orders.repository import ORDERS, SALES
from services.outbox.bulk.repository import BULK_ACTIONS
from services.outbox.control.repository import DEAD_LETTERS, DEFERRED
from services.outbox.inspection.repository import BY_AGGREGATE, READY, TIMED
from services.query import Listing, PageQuery, Rows
from services.totals import Count
from services.unit_of_work import UnitOfWork
from services.users.repository import USERS
from services.users.roles.repository import ROLE_REQUESTS
from tests.conftest import Administrator, settings_for, temporary_database
from tests.factories import Recorder
from tests.servers import TestServers

SIZE = many.Size(users=6_000, products=100_000, orders=30_000, others=6_000)
REFUNDS_OF_ONE = 6_000
ACTS = 30_000
TRANSFERS_OF_ONE = 30_000
EXAMINED, LIMIT = 200, 20

Read = Callable[[UnitOfWork, PageQuery], Awaitable[Rows[Any]]]


@dataclass(frozen=True)
class Case:
    """A list, how a page of it is read, and its path, for the values of its filters; None if it has none."""

    listing: Listing[Any]
    read: Read
    path: str | None

    @property
    def values(self) -> Mapping[str, Sequence[str]]:
        return many.VALUES[self.path] if self.path else {}


CASES = {
    "products": Case(PRODUCTS, lambda uow, wanted: uow.products.page(wanted), "/v1/products"),
    "categories": Case(CATEGORIES, lambda uow, wanted: uow.categories.list_page(CATEGORIES, wanted), "/v1/categories"),
    "users": Case(USERS, lambda uow, wanted: uow.users.list_page(USERS, wanted), "/v1/users"),
    "orders of a buyer": Case(
        ORDERS, lambda uow, wanted: uow.orders.page(wanted, buyer_id=many.BIG_BUYER), "/v1/orders"
    ),
    "orders of a seller": Case(
        SALES, lambda uow, wanted: uow.orders.page(wanted, seller_id=many.BIG_SELLER), "/v1/orders?as=seller"
    ),
    "products of a seller": Case(
        OWN_PRODUCTS, lambda uow, wanted: uow.products.of_seller(many.BIG_SELLER, wanted), "/v1/users/me/products"
    ),
    "transfers of a payer": Case(
        TRANSFERS, lambda uow, wanted: uow.transfers.page(1, Party.payer, wanted), "/v1/transfers"
    ),
    "transfers of a recipient": Case(
        TRANSFERS, lambda uow, wanted: uow.transfers.page(2, Party.recipient, wanted), "/v1/transfers"
    ),
    "holds of a payer": Case(
        HOLDS, lambda uow, wanted: uow.transfers.page(1, Party.payer, wanted, holds=True), "/v1/holds"
    ),
    "holds of a recipient": Case(
        HOLDS, lambda uow, wanted: uow.transfers.page(2, Party.recipient, wanted, holds=True), "/v1/holds"
    ),
    "orders of everybody": Case(ORDERS, lambda uow, wanted: uow.orders.page(wanted), "/v1/orders"),
    "refunds": Case(REFUNDS, lambda uow, wanted: _refunds(uow, wanted), None),
    "refunds of a seller": Case(REFUNDS, lambda uow, wanted: _refunds(uow, wanted, many.BIG_SELLER), None),
    "bulk actions": Case(
        BULK_ACTIONS, lambda uow, wanted: uow.bulk.list_page(BULK_ACTIONS, wanted), "/v1/operations/bulk-actions"
    ),
    "dead letters": Case(
        DEAD_LETTERS, lambda uow, wanted: uow.control.dead_letters(wanted), "/v1/operations/dead-letters"
    ),
    "deferred": Case(DEFERRED, lambda uow, wanted: uow.control.deferred(wanted), "/v1/operations/deferred"),
    "ready events": Case(READY, lambda uow, wanted: uow.inspection.ready("thing", wanted), None),
    "events that wait for a time": Case(
        TIMED, lambda uow, wanted: uow.inspection.timed("reminder", wanted), "/v1/operations/waiting"
    ),
    "events that wait, by aggregate": Case(
        BY_AGGREGATE, lambda uow, wanted: uow.inspection.waiting(wanted), "/v1/operations/waiting?reason=behind"
    ),
    "adjustments": Case(
        ADJUSTMENTS, lambda uow, wanted: uow.adjustments.list_page(ADJUSTMENTS, wanted), "/v1/adjustments"
    ),
    "the audit log": Case(AUDIT_LOG, lambda uow, wanted: uow.audit_log.list_page(AUDIT_LOG, wanted), "/v1/audit-log"),
    "role requests": Case(ROLE_REQUESTS, lambda uow, wanted: uow.role_requests.list_page(ROLE_REQUESTS, wanted), None),
    "a statement": Case(ENTRIES, lambda uow, wanted: uow.statements.page(2, wanted), "/v1/accounts/me/statement"),
    "an export": Case(
        _LINES, lambda uow, wanted: uow.statements.lines(2, 2**40, wanted), "/v1/accounts/me/statement.csv"
    ),
}


async def _refunds(uow: UnitOfWork, wanted: PageQuery, seller_id: int | None = None) -> Rows[Any]:
    order = (await uow.orders.page(PageQuery(sort="id", limit=1))).data[0]
    return await uow.refunds.page(order.id, wanted, seller_id)


def test_every_list_is_tried_with_every_filter() -> None:
    found: dict[int, Listing[Any]] = {}
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if module.name.endswith(".repository"):
            found |= {id(one): one for one in vars(import_module(module.name)).values() if isinstance(one, Listing)}
    assert {id(case.listing) for case in CASES.values()} == set(found)
    for name, case in CASES.items():
        assert case.values.keys() == case.listing.filters.keys(), name


@pytest.fixture(scope="module")
def filled(administrator: Administrator, servers: TestServers, template_database: str) -> Iterator[str]:
    with temporary_database(administrator, servers, template_database) as url:
        many.fill(url, SIZE)
        with psycopg.connect(url) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(
                "INSERT INTO refunds (id, order_id, amount, requested_by) SELECT gen_random_uuid(), first.id, 1, 1"
                " FROM (SELECT id FROM orders ORDER BY id LIMIT 1) AS first, generate_series(1, %s)",
                [REFUNDS_OF_ONE],
            )
            connection.execute("ANALYZE refunds")
            # Nine of ten are from the first user to the second one, and one of ten is a hold.
            connection.execute(
                "INSERT INTO transfers (id, debit_account_id, credit_account_id, amount, kind, state, posted_amount,"
                " created_at, expires_at, resolved_at)"
                " SELECT uuidv7(made - now()), (SELECT id FROM accounts WHERE user_id = 1),"
                " (SELECT id FROM accounts WHERE user_id = CASE WHEN n %% 10 = 0 THEN 3 + n / 10 %% 9 ELSE 2 END),"
                " 1 + n %% 300, 'transfer', CASE WHEN n %% 700 = 0 THEN 'pending' ELSE 'posted' END,"
                " CASE WHEN n %% 700 = 0 THEN NULL ELSE 1 END, made,"
                " CASE WHEN n %% 7 = 0 THEN made + interval '1 day' END,"
                " CASE WHEN n %% 700 = 0 THEN NULL ELSE made END"
                " FROM generate_series(1, %s) AS n,"
                " LATERAL (SELECT now() - (%s - n) * interval '1 minute' AS made) AS at",
                [TRANSFERS_OF_ONE, TRANSFERS_OF_ONE],
            )
            connection.execute("ANALYZE transfers")
            # Nine of ten rows are the sign-ins of one user.
            connection.execute(
                "INSERT INTO audit_log (action, object, actor, user_id, at)"
                " SELECT CASE WHEN n %% 10 = 0 THEN 'credits.top_up' ELSE 'user.signed_in' END,"
                " CASE WHEN n %% 10 = 0 THEN 'account/' || n %% 500 ELSE 'user/1' END,"
                " 'user:' || one.user_id, one.user_id, now() - (%s - n) * interval '1 minute'"
                " FROM generate_series(1, %s) AS n,"
                " LATERAL (SELECT CASE WHEN n %% 10 = 0 THEN 1 + n / 10 %% 10 ELSE 1 END AS user_id) AS one",
                [ACTS, ACTS],
            )
            connection.execute("ANALYZE audit_log")
        yield url


@pytest.fixture
async def database(filled: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    monkeypatch.setattr(services.walks, "EXAMINED", EXAMINED)
    monkeypatch.setattr(services.query, "MAX_COUNTED", EXAMINED)
    async with open_database(settings_for(filled, "redis://127.0.0.1:1"), "test") as opened:
        yield opened


@contextmanager
def recorded(database: Database) -> Iterator["Sent"]:
    sent = Sent()
    event.listen(database.engine.sync_engine, "before_cursor_execute", sent.record)
    try:
        yield sent
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", sent.record)


class Sent(Recorder):
    """The statements with their parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: list[Sequence[object]] = []

    def record(self, connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        super().record(connection, cursor, statement, parameters, *rest)
        self.parameters.append(parameters)


def literal(value: object) -> str:
    if isinstance(value, list):
        value = "{" + ",".join(map(str, value)) + "}"
    return "NULL" if value is None else "'" + str(value).replace("'", "''") + "'"


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def faults(plan: dict[str, Any], most: int) -> list[str]:
    """The parts of the plan that read, sort or expect more than `most` rows."""
    found = []
    for node in nodes(plan):
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        rows = (node["Actual Rows"] + removed) * node["Actual Loops"]
        if "Scan" in node["Node Type"] and rows > most:
            found.append(f"{node['Node Type']} of {node.get('Relation Name', node.get('Index Name'))}: {rows:.0f} rows")
        # A plan that expects many rows would read the whole table in a larger database.
        if node["Node Type"] == "Limit" and node["Plan Rows"] > most:
            found.append(f"expects {node['Plan Rows']} rows of a page")
        if "Sort" in node["Node Type"] and node["Plans"][0]["Actual Rows"] * node["Actual Loops"] > most:
            found.append(f"{node['Node Type']} of {node['Plans'][0]['Actual Rows']:.0f} rows")
    return found


def is_finder(statement: str) -> bool:
    """Whether it finds out if few rows match a filter. The server stops it after a fraction of a second."""
    return f"LIMIT {EXAMINED + 1}" in statement and "AS near" not in statement and "AS page" not in statement


def whole_reads(plan: dict[str, Any]) -> list[str]:
    """The parts of the plan that read all of a table or of an index."""
    scans = [node for node in nodes(plan) if "Scan" in node["Node Type"] and node["Node Type"] != "Bitmap Heap Scan"]
    return [f"{node['Node Type']} without a condition" for node in scans if "Index Cond" not in node] if scans else []


async def wrong(database: Database, statements: Sent) -> list[str]:
    """What is wrong with the plans of the statements, for the given values and for any values."""
    # Some examine more than the page shows, but all are limited.
    most = 2 * EXAMINED + 51
    found = []
    async with database.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        modes = ["force_custom_plan", "force_generic_plan"]
        for text, parameters in zip(statements.statements, statements.parameters, strict=True):
            if not text.startswith("SELECT"):
                # A savepoint, and settings, of `services.searching`.
                continue
            if "set_config" in text:
                modes = ["force_custom_plan"]
                continue
            await driver.execute(f"PREPARE page AS {text}")
            for mode in modes:
                await driver.execute(f"SET plan_cache_mode = {mode}")
                values = f"({', '.join(map(literal, parameters))})" if parameters else ""
                # As the statement is run.
                await driver.execute(f"SET enable_seqscan = {'off' if is_finder(text) else 'on'}")
                said = await driver.fetchval(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE page{values}")
                plan = said[0]["Plan"]
                found += [f"{mode}: {one}" for one in (whole_reads(plan) if is_finder(text) else faults(plan, most))]
            await driver.execute("DEALLOCATE page")
    return found


def wanted_filters(case: Case) -> Iterator[list[str]]:
    yield []
    for name, field in case.listing.filters.items():
        for operator in sorted(field.operators):
            if case.path:
                values = many.values_of(case.path, name, operator.value)
                yield from ([f"{name}:{operator.value}:{value}"] for value in values)


@pytest.mark.parametrize("name", CASES)
async def test_a_page_reads_and_sorts_no_more_rows_than_it_may_examine(database: Database, name: str) -> None:
    case = CASES[name]
    bad: dict[str, list[str]] = {}
    for sort in (direction + field for field in case.listing.sorts for direction in ("", "-")):
        for filters in wanted_filters(case):
            cursor = None
            for number in (1, 2):
                async with UnitOfWork(database.write) as uow:
                    with recorded(database) as sent:
                        count = Count.exact if number == 1 else None
                        page = await case.read(uow, PageQuery(filters, sort, LIMIT, cursor, count))
                if found := await wrong(database, sent):
                    bad[f"{sort} {filters} page {number}"] = found
                if (cursor := page.next_cursor) is None:
                    break
    assert bad == {}


_OF_ORDERS = {
    "status": "status:eq:rejected",
    "total": "total:gt:150.00",
    "reference": "reference:eq:INV-4",
    "buyer_id": "buyer_id:in:2,4",
    "created_at": "created_at:gt:2020-01-01T00:00:00Z",
    "updated_at": "updated_at:lt:2099-01-01T00:00:00Z",
}
TOGETHER = {
    "products": {
        "category_id": "category_id:eq:1",
        "seller_id": "seller_id:in:5,7",
        "sku": "sku:eq:SKU-77",
        "name": "name:like:lantern a87ff6",
        "price": "price:gte:100.00",
        "created_at": "created_at:lt:2099-01-01T00:00:00Z",
    },
    "users": {
        "email": "email:like:er77@example",
        "full_name": "full_name:eq:Ada 44",
        "role": "role:eq:operator",
        "is_active": "is_active:ne:true",
        "created_at": "created_at:gt:2020-01-01T00:00:00Z",
    },
    "orders of a buyer": _OF_ORDERS,
    "orders of a seller": {name: one for name, one in _OF_ORDERS.items() if name in SALES.filters},
    "orders of everybody": _OF_ORDERS,
}


@pytest.mark.parametrize("name", TOGETHER)
async def test_two_filters_together_read_no_more_than_one(database: Database, name: str) -> None:
    case, filters = CASES[name], TOGETHER[name]
    assert filters.keys() == case.listing.filters.keys()
    bad: dict[str, list[str]] = {}
    for sort in (direction + field for field in case.listing.sorts for direction in ("", "-")):
        for pair in combinations(filters.values(), 2):
            async with UnitOfWork(database.write) as uow:
                with recorded(database) as sent:
                    await case.read(uow, PageQuery(list(pair), sort, LIMIT))
            if found := await wrong(database, sent):
                bad[f"{sort} {pair}"] = found
    assert bad == {}


@pytest.mark.parametrize("words", ["lanten", "Brass", "a87ff6", "submarine", "lantern a87ff6", "%%"])
async def test_a_search_reads_and_sorts_no_more_rows_than_it_may_examine(database: Database, words: str) -> None:
    for sort in (direction + field for field in PRODUCTS.sorts for direction in ("", "-")):
        for filters in ([], ["seller_id:in:5,7"], ["price:gt:9999.00"]):
            async with UnitOfWork(database.write) as uow:
                with recorded(database) as sent:
                    await uow.products.page(PageQuery(filters, sort, LIMIT, count=Count.exact), words)
            assert await wrong(database, sent) == [], (sort, filters)


@pytest.mark.parametrize(
    ("name", "filter_"),
    [
        ("products", "name:like:lantern a87ff6"),
        ("users", "email:like:er77@example"),
        ("users", "full_name:like:race 4321"),
        ("products", "sku:eq:SKU-77"),
        ("users", "full_name:eq:Ada 44"),
    ],
)
async def test_what_few_rows_have_is_found_at_once_in_every_order(database: Database, name: str, filter_: str) -> None:
    for sort in CASES[name].listing.sorts:
        async with UnitOfWork(database.write) as uow:
            with recorded(database) as sent:
                page = await CASES[name].read(uow, PageQuery([filter_], sort, LIMIT))
        assert len(page.data) == 1
        assert await wrong(database, sent) == []
