"""The rules from lines to orders: every line and invoice is planned or counted, and every cent is accounted for."""

from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from services.catalog.schemas import ProductCreate, Stock
from services.cli.retail.plan import GUEST, MAX_QUANTITY, MAX_STOCK, Plan, Product, credits_of, make_plan
from services.cli.retail.reasons import InvoiceReason, LineReason
from services.cli.retail.source import BadLine, Line
from services.fields import Quantity
from services.orders.models import MAX_ITEMS


def line(
    invoice: str = "1",
    code: str = "85123A",
    quantity: int = 1,
    price: str = "2.55",
    customer: str | None = "17850",
    description: str = "HEART",
) -> Line:
    return Line(invoice, code, description, quantity, Decimal(price), customer)


def plan_of(*lines: Line | BadLine) -> Plan:
    return make_plan(lines).finish("f" * 64)


@pytest.mark.parametrize(
    ("skipped", "reason"),
    [
        (line(invoice="C1"), LineReason.cancelled_invoice),
        (line(invoice="A1"), LineReason.adjustment),
        (line(quantity=0), LineReason.quantity_not_positive),
        (line(quantity=-3), LineReason.quantity_not_positive),
        (line(quantity=MAX_QUANTITY + 1), LineReason.quantity_too_large),
        (line(price="0.00"), LineReason.price_zero),
        (line(price="-11062.06"), LineReason.price_negative),
        (line(price="0.001"), LineReason.price_not_in_cents),
        (line(price="100000000000000.00000000000000001"), LineReason.price_not_in_cents),
        (line(customer="2"), LineReason.other_customer_in_invoice),
        (line(customer=None), LineReason.other_customer_in_invoice),
        (line(code="\x00"), LineReason.malformed),
        (line(code="8" * 61), LineReason.malformed),
        (BadLine(LineReason.blank), LineReason.blank),
    ],
)
def test_a_line_that_cannot_be_sold_is_counted_under_its_reason(skipped: Line | BadLine, reason: LineReason) -> None:
    plan = plan_of(line(), skipped)
    assert plan.skipped_lines == Counter({reason: 1})
    assert [len(invoice.products) for invoice in plan.invoices] == [1]


def test_an_invoice_is_counted_under_the_reason_it_is_skipped_for() -> None:
    plan = plan_of(
        line("C1"),
        line("A2"),
        line("3", quantity=-1),
        BadLine(LineReason.malformed, "4"),
        *(line("5") for _ in range(MAX_ITEMS + 1)),
        *(line("6", code="BIG", quantity=MAX_QUANTITY, price="999999999999999") for _ in range(11)),
        line("7"),
    )
    assert plan.invoices_read == 7
    assert [invoice.number for invoice in plan.invoices] == ["7"]
    assert plan.skipped_invoices == {
        InvoiceReason.cancelled: 1,
        InvoiceReason.adjustment: 1,
        InvoiceReason.no_sellable_line: 2,
        InvoiceReason.too_many_lines: 1,
        InvoiceReason.amounts_too_large: 1,
    }
    assert plan.skipped_lines[LineReason.invoice_has_too_many_lines] == MAX_ITEMS + 1
    assert plan.skipped_lines[LineReason.invoice_amounts_too_large] == 11


def test_the_largest_invoice_that_an_order_can_hold_is_kept_whole() -> None:
    plan = plan_of(*(line() for _ in range(MAX_ITEMS)))
    assert len(plan.invoices[0].products) == MAX_ITEMS


def test_more_pieces_than_stock_can_hold_are_not_sold() -> None:
    lines = [line(str(number), quantity=MAX_QUANTITY, price="0.01") for number in range(1001)]
    plan = plan_of(*lines)
    assert len(plan.invoices) == 1000
    assert plan.products[0].demand == MAX_STOCK
    assert plan.skipped_invoices == {InvoiceReason.amounts_too_large: 1}


def test_the_limits_are_those_of_the_api() -> None:
    for accepted, largest in ((Quantity, MAX_QUANTITY), (Stock, MAX_STOCK)):
        adapter: TypeAdapter[int] = TypeAdapter(accepted)
        assert adapter.validate_python(largest) == largest
        with pytest.raises(ValidationError):
            adapter.validate_python(largest + 1)


def test_each_price_of_a_code_is_a_product_of_its_own() -> None:
    plan = plan_of(line(price="2.55"), line(price="2.950"), line("2", price="2.55", quantity=5))
    assert [(product.sku, product.demand) for product in plan.products] == [("85123A@2.55", 6), ("85123A@2.95", 1)]
    assert [invoice.cents for invoice in plan.invoices] == [550, 1275]


def test_the_same_product_twice_in_an_invoice_stays_two_lines() -> None:
    (invoice,) = plan_of(line(quantity=2), line(quantity=3)).invoices
    assert (list(invoice.products), list(invoice.pieces)) == ([0, 0], [2, 3])


def test_an_invoice_whose_lines_stand_apart_is_one_order_at_its_first_place() -> None:
    plan = plan_of(line("1"), line("2"), line("1"))
    assert [(invoice.number, len(invoice.products)) for invoice in plan.invoices] == [("1", 2), ("2", 1)]


def test_invoices_without_a_customer_belong_to_the_guest() -> None:
    plan = plan_of(line("1", customer=None), line("2", customer=None), line("3"))
    assert [invoice.customer for invoice in plan.invoices] == [GUEST, GUEST, "17850"]
    assert plan.spend == {GUEST: 510, "17850": 255}


def test_a_product_is_named_after_its_most_frequent_description() -> None:
    names = ["RED LAMP", "lamp?", " RED\t LAMP\x00", "", ""]
    plan = plan_of(*(line(description=name) for name in names))
    assert plan.products[0].name == "RED LAMP"


@pytest.mark.parametrize("description", ["", "  ", "\x00\x01"])
def test_a_product_without_a_description_is_named_after_its_code(description: str) -> None:
    assert plan_of(line(description=description)).products[0].name == "85123A"


@pytest.mark.parametrize("code", ["POST", "M", "D", "DOT", "C2", "BANK CHARGES", "AMAZONFEE", "CRUK"])
def test_service_codes_are_distinguished_from_goods(code: str) -> None:
    assert Product(code, 100).is_service


@pytest.mark.parametrize("code", ["85123A", "22423", "DCGS0076", "gift_0001_40"])
def test_goods_are_distinguished_from_service_codes(code: str) -> None:
    assert not Product(code, 100).is_service


def test_cents_are_written_as_the_api_writes_credits() -> None:
    assert [credits_of(cents) for cents in (0, 5, 255, 100000)] == ["0.00", "0.05", "2.55", "1000.00"]


_LINES = st.builds(
    line,
    invoice=st.sampled_from(["1", "2", "C3", "A4", "5"]),
    code=st.text(max_size=70),
    quantity=st.integers(-5, 2 * MAX_QUANTITY),
    price=st.decimals(-10, 10, places=3).map(str),
    customer=st.sampled_from([None, "1", "2"]),
    description=st.text(max_size=300),
)
_BAD_LINES = st.builds(BadLine, st.just(LineReason.malformed), st.sampled_from([None, "1", "6"]))


@given(st.lists(_LINES | _BAD_LINES, max_size=30))
def test_whatever_the_lines_nothing_is_dropped_and_the_api_takes_the_rest(lines: list[Line | BadLine]) -> None:
    plan = plan_of(*lines)
    in_orders = sum(len(invoice.products) for invoice in plan.invoices)
    assert in_orders + plan.skipped_lines.total() == len(lines)
    assert len(plan.invoices) + plan.skipped_invoices.total() == plan.invoices_read
    for product in plan.products:
        ProductCreate.model_validate(
            {
                "sku": product.sku,
                "name": product.name,
                "price": credits_of(product.cents),
                "category_id": 1,
                "stock": product.demand,
            }
        )
