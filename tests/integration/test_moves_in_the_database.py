"""The database itself lets an order make the moves that the model allows, and no others."""

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors

from services.orders.models import ALLOWED_MOVES, FIRST_STATUSES, OrderStatus

Connection = psycopg.Connection[tuple[object, ...]]

MOVES = [(before, after) for before in (None, *OrderStatus) for after in OrderStatus]


def is_allowed(before: OrderStatus | None, after: OrderStatus) -> bool:
    return after in (FIRST_STATUSES if before is None else ALLOWED_MOVES[before])


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with psycopg.connect(database_url) as connection:
        # Foreign keys to users do not matter here.
        connection.execute("SET session_replication_role = 'replica'")
        yield connection
        connection.rollback()


def test_every_move_is_allowed_or_refused_as_the_model_says(connection: Connection) -> None:
    refused = {}
    for before, after in MOVES:
        try:
            with connection.transaction():
                connection.execute(
                    "INSERT INTO order_transitions (order_id, from_status, to_status) VALUES (%s, %s, %s)",
                    (uuid4(), before, after),
                )
        except errors.CheckViolation as error:
            refused[before, after] = error.diag.constraint_name
    assert refused == {move: "ck_order_transitions_allowed_move" for move in MOVES if not is_allowed(*move)}


@pytest.mark.parametrize("status", [*OrderStatus, "paid", ""])
def test_an_order_must_have_a_known_status(connection: Connection, status: str) -> None:
    def place() -> None:
        connection.execute(
            "INSERT INTO orders (id, buyer_id, status, total, item_count, expires_at)"
            " VALUES (%s, 1, %s::text, 1, 1, CASE WHEN %s::text = 'awaiting_payment' THEN now() END)",
            (uuid4(), status, status),
        )

    if status in set(OrderStatus):
        place()
        return
    with pytest.raises(errors.CheckViolation, match="ck_orders_status"):
        place()
