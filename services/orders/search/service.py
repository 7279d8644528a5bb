"""Finds orders by what operators know of them, newest first."""

from dataclasses import replace
from uuid import UUID

from services.errors import Forbidden, NotFound
from services.orders.models import Order
from services.orders.repository import WITH_BUYER
from services.orders.schemas import OrderSummary
from services.orders.search.schemas import OrderSearch
from services.query import Page, PageQuery, Rows
from services.unit_of_work import UnitOfWork
from services.users.models import Caller
from services.users.rights import Scope

PAGES = 4
"""How many pages of the list are read for one page of the search, if few of the rows that they examine match."""

_NOTHING: Rows[Order] = Rows([], False, None)


async def search(uow: UnitOfWork, caller: Caller, wanted: OrderSearch) -> Page[OrderSummary]:
    """As `find`. Raises `Forbidden` for an e-mail address if the caller may not read users."""
    if wanted.buyer_email is not None and not caller.may(Scope.users_read):
        raise Forbidden(f"to search by an e-mail address needs the scope {Scope.users_read.value}")
    return await find(uow, wanted)


async def find(uow: UnitOfWork, wanted: OrderSearch) -> Page[OrderSummary]:
    """A page of orders, perhaps with fewer than its limit although there are more. Raises `BadQuery`."""
    return (await _rows(uow, wanted)).shown(lambda order: OrderSummary.model_validate(order, from_attributes=True))


async def identified(uow: UnitOfWork, what: str) -> list[UUID]:
    """The ids of the newest orders with this id or reference; a few, since each buyer has references of their own.

    Raises `NotFound` if there is none.
    """
    try:
        return [UUID(what)]
    except ValueError:
        pass
    page = PageQuery([f"reference:eq:{what}"], "-id", limit=20)
    found = [order.id for order in (await uow.orders.page(page)).data]
    if not found:
        raise NotFound(f"no order has the id or the reference {what!r}")
    return found


async def _rows(uow: UnitOfWork, wanted: OrderSearch) -> Rows[Order]:
    filters = []
    if wanted.id is not None:
        return await _one(uow, wanted)
    buyer_id = wanted.buyer_id
    if wanted.buyer_email is not None:
        user = await uow.users.by_email(wanted.buyer_email)
        if user is None or buyer_id not in (None, user.id):
            return _NOTHING
        buyer_id = user.id
    # The list uses the index of the first one: few orders have the same reference.
    if wanted.reference is not None:
        filters.append(f"reference:eq:{wanted.reference}")
    if buyer_id is not None:
        filters.append(f"buyer_id:eq:{buyer_id}")
    if wanted.status is not None:
        filters.append(f"status:in:{','.join(sorted(set(wanted.status)))}")
    if wanted.placed_from is not None:
        filters.append(f"created_at:gte:{wanted.placed_from.isoformat()}")
    if wanted.placed_before is not None:
        filters.append(f"created_at:lt:{wanted.placed_before.isoformat()}")
    return await _filled(uow, PageQuery(filters, "-id", wanted.limit, wanted.cursor, scope="search"))


async def _filled(uow: UnitOfWork, page: PageQuery) -> Rows[Order]:
    """A page that continues where the list ends one because it has examined enough rows: up to `PAGES` times."""
    rows = await uow.orders.page(page)
    for _ in range(PAGES - 1):
        left = page.limit - len(rows.data)
        if not rows.has_more or left == 0:
            break
        more = await uow.orders.page(replace(page, limit=left, cursor=rows.next_cursor))
        rows = replace(more, data=[*rows.data, *more.data])
    return rows


async def _one(uow: UnitOfWork, wanted: OrderSearch) -> Rows[Order]:
    """The order with this id, if the other fields match it as well."""
    order = await uow.orders.get(wanted.id, options=(WITH_BUYER,))
    if order is None or wanted.buyer_id not in (None, order.buyer_id):
        return _NOTHING
    if wanted.buyer_email is not None:
        user = await uow.users.by_email(wanted.buyer_email)
        if user is None or user.id != order.buyer_id:
            return _NOTHING
    matches = (
        wanted.reference in (None, order.reference)
        and (wanted.status is None or order.status in wanted.status)
        and (wanted.placed_from is None or order.created_at >= wanted.placed_from)
        and (wanted.placed_before is None or order.created_at < wanted.placed_before)
    )
    return Rows([order], False, None) if matches else _NOTHING
