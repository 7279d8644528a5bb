"""The audit finds credits that went to the wrong seller of an order, although every sum is right."""

from decimal import Decimal

import pytest

from services.catalog.models import Product
from services.users.models import User
from tests.api.audited import corrupt, run_audit
from tests.api.client import Api
from tests.factories import make_operator, make_product, make_user

SWAP_SHARES = """
    UPDATE transfers SET credit_account_id = one.total - credit_account_id
    FROM (SELECT sum(credit_account_id) AS total FROM transfers WHERE order_id = CAST(:order AS uuid)) AS one
    WHERE order_id = CAST(:order AS uuid)
"""
SWAP_SELLERS = "UPDATE products SET seller_id = (SELECT sum(seller_id) FROM products) - seller_id"


class Sold:
    """An order of the products of two sellers."""

    def __init__(self, api: Api, buyer: User, sellers: list[User], products: list[Product], order_id: str) -> None:
        self.api, self.buyer, self.sellers, self.products, self.order_id = api, buyer, sellers, products, order_id

    async def found(self) -> dict[tuple[str, int], tuple[Decimal, Decimal]]:
        """What an audit expects and finds, by the kind of difference and the user of the account."""
        found = {}
        for difference in (await run_audit(self.api.database))[1]:
            assert difference.subject["order_id"] == self.order_id, difference
            account = difference.subject["account_id"]
            user_id = await self.api.scalar("SELECT user_id FROM accounts WHERE id = :id", id=account)
            found[difference.kind.value, user_id] = Decimal(difference.expected), Decimal(difference.found)
        return found


@pytest.fixture
async def sold(api: Api) -> Sold:
    buyer = await make_user(api.database, credits="1000")
    sellers = [await make_user(api.database, credits="100") for _ in range(2)]
    products = [
        await make_product(api.database, seller=seller, price=price)
        for seller, price in zip(sellers, ("10.00", "0.99"), strict=True)
    ]
    placed = await api.place(buyer, (products[0], 2), (products[1], 3), (products[0], 1))
    return Sold(api, buyer, sellers, products, placed["id"])


async def test_shares_that_are_swapped_before_the_order_is_confirmed_pay_the_wrong_sellers(sold: Sold) -> None:
    one, other = (seller.id for seller in sold.sellers)
    assert await sold.found() == {}
    await corrupt(sold.api.database, SWAP_SHARES, order=sold.order_id)
    dear, cheap = Decimal("30.00"), Decimal("2.97")
    assert await sold.found() == {("payee_held", one): (dear, cheap), ("payee_held", other): (cheap, dear)}

    await sold.api.process()

    # From here on, transfers, entries and balances agree with each other.
    await sold.api.assert_books_balance()
    assert await sold.found() == {("payee_paid", one): (dear, cheap), ("payee_paid", other): (cheap, dear)}


async def test_a_refund_by_the_wrong_sellers_is_found(sold: Sold) -> None:
    operator = await make_operator(sold.api.database)
    await sold.api.process()
    one, other = (seller.id for seller in sold.sellers)
    await corrupt(sold.api.database, SWAP_SELLERS)
    lines = [{"line": 1, "quantity": 1}, {"line": 2, "quantity": 3}]
    reply = await sold.api.post(f"/v1/orders/{sold.order_id}/refunds", by=operator, json={"reason": "", "lines": lines})
    assert reply.status_code == 201, reply.text
    await corrupt(sold.api.database, SWAP_SELLERS)

    dear, cheap = Decimal("10.00"), Decimal("2.97")
    assert await sold.found() == {("payee_refunded", one): (dear, cheap), ("payee_refunded", other): (cheap, dear)}


@pytest.mark.parametrize("end", ["fulfil", "cancel", "reject", "refund"])
async def test_the_right_sellers_are_not_reported(sold: Sold, end: str) -> None:
    operator = await make_operator(sold.api.database)
    path = f"/v1/orders/{sold.order_id}"
    if end == "reject":
        reply = await sold.api.post(
            f"/v1/products/{sold.products[0].id}/stock", by=sold.sellers[0], json={"change": -99}
        )
        assert reply.status_code == 200
    await sold.api.process()
    if end in ("fulfil", "cancel"):
        assert (await sold.api.post(f"{path}/{end}", by=operator, json={})).status_code == 200
    if end == "refund":
        assert (await sold.api.post(f"{path}/refunds", by=sold.sellers[1], json={})).status_code == 201
    assert await sold.found() == {}
