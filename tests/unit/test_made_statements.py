"""Statements that are made from the fields of a model: a new field is a new column."""

from typing import Any

import pytest
from sqlalchemy import Column, DateTime, Integer, MetaData, Numeric, String, Table, Text
from sqlmodel import Field

from services.orders.models import ITEM_FIELDS, ORDER_FIELDS, Order, OrderBase, OrderItem, OrderItemBase
from services.orders.placing import queries as placing
from services.orders.queries import placing_statement
from services.sql import Statement, array_of


class LongerOrder(OrderBase):
    delivery_note: str = Field(default="", max_length=100)


class LongerItem(OrderItemBase):
    engraving_2: str = Field(default="", max_length=100)


LONGER_ITEMS = Table(
    "longer_items",
    MetaData(),
    Column("product_id", Integer),
    Column("quantity", Integer),
    Column("engraving_2", String(100)),
    Column("unit_price", Numeric(18, 2)),
)


def test_a_new_field_of_an_order_is_a_column_of_its_insert() -> None:
    items = OrderItem.metadata.tables["order_items"]
    made = placing_statement(tuple(LongerOrder.model_fields), ITEM_FIELDS, items)
    insert = made.sql.split("INSERT INTO orders")[1].split("RETURNING")[0]
    columns, values = insert.split("VALUES")
    assert columns.strip(" (\n)").endswith(", delivery_note")
    number = made.parameters.index("delivery_note") + 1
    assert f", ${number}\n" in values


def test_a_new_field_of_a_line_is_a_column_of_its_insert() -> None:
    made = placing_statement(ORDER_FIELDS, tuple(LongerItem.model_fields), LONGER_ITEMS)
    insert = made.sql.split("INSERT INTO order_items (")[1]
    assert insert.startswith("order_id, line, product_id, quantity, engraving_2, unit_price)")
    assert "line.engraving_2" in insert
    assert "each_engraving_2" in made.parameters


def test_a_new_field_of_an_order_or_a_line_is_a_column_of_the_inserts_of_a_group() -> None:
    orders = Table("longer_orders", MetaData(), Column("reference", String(64)), Column("delivery_note", String(100)))
    order_fields, item_fields = tuple(LongerOrder.model_fields), tuple(LongerItem.model_fields)
    made = placing.placing_statement(order_fields, item_fields, orders, LONGER_ITEMS)
    columns, select = made.sql.split("INSERT INTO orders (")[1].split("FROM new_orders")[0].split("SELECT")
    assert columns.strip(" \n)").endswith(", delivery_note")
    assert select.strip().endswith(", delivery_note")
    assert {"each_delivery_note", "each_engraving_2"} <= set(made.parameters)
    insert = made.sql.split("INSERT INTO order_items (")[1]
    assert insert.startswith("order_id, line, product_id, quantity, engraving_2, unit_price)")


def test_the_names_that_are_used_are_those_of_the_models() -> None:
    assert set(ORDER_FIELDS) == OrderBase.model_fields.keys() <= Order.model_fields.keys()
    assert set(ITEM_FIELDS) == OrderItemBase.model_fields.keys() <= OrderItem.model_fields.keys()


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (Column("c", String(100)), "VARCHAR"),
        (Column("c", Text), "TEXT"),
        (Column("c", Numeric(18, 2)), "NUMERIC"),
        (Column("c", DateTime(timezone=True)), "TIMESTAMP WITH TIME ZONE"),
    ],
)
def test_the_type_of_an_array_cuts_nothing_short(column: Column[Any], kind: str) -> None:
    assert array_of(column, "each_c") == f"CAST(:each_c AS {kind}[])"


def test_a_parameter_may_have_a_digit_in_its_name() -> None:
    made = Statement("SELECT :line_1::text, :line_2::text, :line_1")
    assert made.parameters == ("line_1", "line_2")
    assert made.sql == "SELECT $1::text, $2::text, $1"
