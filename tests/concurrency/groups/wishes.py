"""Random requests that place orders or move credits, good and bad ones, and what happens between them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from hypothesis import strategies as st

ORDERS, TRANSFERS = "/v1/orders", "/v1/transfers"
UNKNOWN = 2**62
POISON = "poison"
"""The database refuses an order with this reference, and a transfer with this note; only the database knows that."""

BUYERS = range(4)
SELLERS = range(4, 6)
INACTIVE, DELETED, CLOSED = range(6, 9)
BUSY, MOVER, SINK = range(9, 12)
"""Users of the requests that keep the others waiting."""
USERS = range(12)
CREDITS = ("100", "40", "9.99", "0", "5", "0", "50", "50", "30", "1000", "1000", "0")
"""What each user has at the start."""

PRODUCTS: Sequence[tuple[int, str, int, bool]] = (
    # Seller, price, pieces, whether it is for sale.
    (4, "1.00", 1000, True),
    (4, "3.50", 6, True),
    (5, "10.00", 3, True),
    (5, "2.00", 50, False),
    (0, "2.00", 50, True),
    (5, "9999999999999999.99", 50, True),
    (CLOSED, "4.00", 50, True),
    # The database refuses a hold of this amount.
    (5, "6.66", 50, True),
)


class Caller(StrEnum):
    """How a request is authenticated."""

    token = "token"
    missing = "missing"
    garbage = "garbage"
    expired = "expired"
    unknown = "unknown"


@dataclass(frozen=True)
class Wish:
    """One request. Users and products are numbers of the cast; `raw` is sent instead of the body if given."""

    path: str
    by: int
    caller: Caller
    key: str | None
    """`*` stands for one that no one has used."""
    body: Any = None
    raw: bytes | None = None

    def content(self, users: Sequence[int], products: Sequence[int]) -> bytes:
        """The body, with the ids of these users and products."""
        if self.raw is not None:
            return self.raw
        body = dict(self.body)
        if isinstance(body.get("to_user_id"), int):
            body["to_user_id"] = _id(users, body["to_user_id"])
        if "items" in body:
            body["items"] = [{**item, "product_id": _id(products, item["product_id"])} for item in body["items"]]
        return json.dumps(body).encode()


def _id(ids: Sequence[int], number: int) -> int:
    return ids[number] if number < len(ids) else number


@dataclass(frozen=True)
class Again:
    """An earlier request once more: with the same key and body, or with another body or by another caller."""

    which: int
    change: str

    def of(self, sent: Sequence[Wish]) -> Wish:
        """The request, after those that were sent before."""
        before = sent[self.which % len(sent)]
        match self.change:
            case "body":
                other = {"items": [{"product_id": 0, "quantity": 1}]} if before.path == ORDERS else _transfer(4, "0.50")
                return replace(before, body=other, raw=None)
            case "caller":
                return replace(before, by=(before.by + 1) % len(BUYERS), caller=Caller.token)
            case _:
                return before


@dataclass(frozen=True)
class Meanwhile:
    """What happens before a wave: a change that someone else commits, or a worker that processes what waits."""

    what: str
    number: int = 0


@dataclass(frozen=True)
class Wave:
    """Requests that arrive at once, in this order."""

    before: Meanwhile
    wishes: Sequence[Wish | Again]


def first_ones() -> list[Wish]:
    """An order and a transfer that have nothing in common with the others."""
    order = {"items": [{"product_id": 0, "quantity": 1}]}
    return [
        Wish(ORDERS, BUSY, Caller.token, "*", order),
        Wish(TRANSFERS, MOVER, Caller.token, "*", _transfer(SINK, "0.01")),
    ]


def _transfer(to: int, amount: Any, **more: Any) -> dict[str, Any]:
    return {"to_user_id": to, "amount": amount, **more}


def _weighted(*weighted: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """One of the strategies, each as often as its weight says: `one_of` would give all of them the same weight."""
    choices = [strategy for weight, strategy in weighted for _ in range(weight)]
    return st.sampled_from(range(len(choices))).flatmap(lambda number: choices[number])


def _mostly(times: int, usual: st.SearchStrategy[Any], *others: Any) -> st.SearchStrategy[Any]:
    return _weighted((times, usual), (1, st.sampled_from(others)))


_items = st.lists(
    st.fixed_dictionaries(
        {
            "product_id": _mostly(14, st.sampled_from([0, 0, 0, 1, 1, 2, 2]), 3, 4, 5, 6, 7, UNKNOWN),
            "quantity": _mostly(40, st.integers(1, 4), 1_000_000, 0, "1"),
        }
    ),
    min_size=1,
    max_size=3,
)
_orders = st.builds(
    lambda items, refuse, reference: {
        "items": items,
        **({"on_insufficient_credits": "refuse"} if refuse else {}),
        **({} if reference is None else {"reference": reference}),
    },
    _items,
    st.sampled_from([False, False, True]),
    st.sampled_from([None] * 7 + ["r-1", "r-1", "r-2", POISON]),
)
_transfers = st.builds(
    _transfer,
    _mostly(12, st.sampled_from([0, 1, 2, 3, 4, 5]), INACTIVE, DELETED, CLOSED, UNKNOWN),
    _mostly(16, st.sampled_from(["0.01", "1", "2.50", "9.99", "20", "40"]), "0", "-1", "1.001", "5000", 1),
    note=st.sampled_from([""] * 9 + ["rent", "Miete €", POISON]),
    dry_run=st.sampled_from([False] * 8 + [True]),
)
_RAW = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"items": []}',
    b'{"items": [{"product_id": 1, "quantity": 1}], "total": "1.00"}',
    b'{"to_user_id": 1}',
    b'{"to_user_id": 1, "amount": "1", "from_user_id": 2}',
    b'{"note": "' + b"x" * 300 + b'"}',
)

_callers = _mostly(30, st.just(Caller.token), *[one for one in Caller if one is not Caller.token])
_by = _weighted(
    (24, st.sampled_from(BUYERS)), (2, st.sampled_from(SELLERS)), (1, st.sampled_from([INACTIVE, DELETED, CLOSED]))
)
_keys = _mostly(12, st.just("*"), "k-1", "k-1", "k-1", "k-2", None, "a b", "x" * 256)


def _wish(path: str, bodies: st.SearchStrategy[Any]) -> st.SearchStrategy[Wish]:
    good = st.builds(Wish, st.just(path), _by, _callers, _keys, body=bodies)
    bad = st.builds(Wish, st.just(path), _by, _callers, _keys, raw=st.sampled_from(_RAW))
    return _weighted((20, good), (1, bad))


def wishes(*paths: str) -> st.SearchStrategy[Wish | Again]:
    bodies = {ORDERS: _orders, TRANSFERS: _transfers}
    again = st.builds(Again, st.integers(0, 30), st.sampled_from(["", "", "", "body", "caller"]))
    return _weighted((1, again), *[(6 // len(paths), _wish(path, bodies[path])) for path in paths])


_meanwhile = st.one_of(
    st.sampled_from([Meanwhile("nothing"), Meanwhile("process")]),
    st.builds(
        Meanwhile,
        st.sampled_from(["price", "off sale", "on sale", "deactivate", "activate", "close", "reopen"]),
        st.integers(0, 5),
    ),
)


def waves() -> st.SearchStrategy[list[Wave]]:
    """A few waves of requests: orders, transfers, or both."""
    kinds = [(ORDERS,), (TRANSFERS,), (ORDERS, TRANSFERS), (ORDERS, TRANSFERS)]
    of_kinds = [st.builds(Wave, _meanwhile, st.lists(wishes(*paths), min_size=4, max_size=18)) for paths in kinds]
    return st.lists(st.one_of(of_kinds), min_size=1, max_size=3)


CHANGES: dict[str, str] = {
    "price": "UPDATE products SET price = price + 0.25, version = version + 1 WHERE id = :product AND price < 100",
    "off sale": "UPDATE products SET is_active = false, version = version + 1 WHERE id = :product",
    "on sale": "UPDATE products SET is_active = true, version = version + 1 WHERE id = :product",
    "deactivate": "UPDATE users SET is_active = false WHERE id = :user",
    "activate": "UPDATE users SET is_active = true WHERE id = :user",
    "close": "UPDATE accounts SET closed_at = now() WHERE user_id = :user AND held = 0",
    "reopen": "UPDATE accounts SET closed_at = NULL WHERE user_id = :user",
}
"""What someone else commits, by name."""
