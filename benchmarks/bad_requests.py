"""Requests that must be refused, each as large and as wrong as it may be."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

MIB = 2**20
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Bad:
    """A request that must be refused."""

    method: str
    path: str
    body: bytes = b""
    content_type: str = JSON


def _products(one: Mapping[str, object], number: int) -> bytes:
    return json.dumps({"products": [one] * number}).encode()


def _filled(start: bytes, piece: bytes, end: bytes, size: int) -> bytes:
    return start + piece * ((size - len(start) - len(end)) // len(piece)) + end


_SEVEN = {f"field{number}": 1 for number in range(7)}
_WRONG = {"sku": 1, "name": 1, "description": 1, "price": 1, "category_id": "1", "stock": "1"}
_UNKNOWN = b"{" + b",".join(b'"%d":1' % number for number in range(110_000))[: MIB - 8] + b"}"

BAD = {
    "110,000 unknown fields": Bad("PUT", "/v1/products", _UNKNOWN),
    "as many unknown fields as there may be": Bad("PUT", "/v1/products", _products(_SEVEN, 1200)),
    "all values of 1000 products wrong": Bad("PUT", "/v1/products", _products(_WRONG, 1000)),
    "500 fields of 2 KB": Bad("PUT", "/v1/products", json.dumps({f"{n}{'x' * 2000}": 1 for n in range(490)}).encode()),
    "a name of 1 MiB": Bad("PUT", "/v1/products", _filled(b'{"', b"x", b'":1}', MIB)),
    "a long name twice": Bad("PUT", "/v1/products", b'{"%b":1,"%b":2}' % (b"x" * 500_000, b"x" * 500_000)),
    "5000 unknown fields of an order": Bad(
        "POST", "/v1/orders", b"{" + b",".join(b'"%d":1' % number for number in range(4999)) + b"}"
    ),
    "an order of 1600 wrong lines": Bad(
        "POST", "/v1/orders", json.dumps({"items": [{"a": 1, "b": 2}] * 1600}).encode()
    ),
    "a text of commas": Bad("PUT", "/v1/products", _filled(b'{"products":"', b",", b'"}', MIB)),
    "a text of escapes": Bad("PUT", "/v1/products", _filled(b'{"products":"', rb"\",", b'"}', MIB)),
    "a text of surrogate pairs": Bad("PUT", "/v1/products", _filled(b'{"products":"', rb"\ud83d\ude00", b'"}', MIB)),
    "a text without an end": Bad("PUT", "/v1/products", _filled(b'{"products":"', rb"\"", b"", MIB)),
    "a list in a list": Bad("PUT", "/v1/products", b"[" * MIB),
    "a list without an end": Bad("PUT", "/v1/products", _filled(b"[", b"1,", b"", MIB)),
    "long numbers": Bad("PUT", "/v1/products", _filled(b"[", b"9" * 4299 + b",", b"1]", MIB)),
    "a longer number": Bad("PUT", "/v1/products", b"9" * MIB),
    "blanks": Bad("PUT", "/v1/products", b" " * MIB),
    "an address of 16 KB": Bad("POST", "/v1/users", _filled(b'{"email":"', "ü.".encode(), b'@x"}', 16_384)),
    "a form of ampersands": Bad("POST", "/v1/token", b"&" * 16_384, FORM),
    "a form of 500 fields": Bad("POST", "/v1/token", b"&".join(b"a%d=1" % n for n in range(499)), FORM),
    "a form of escapes": Bad("POST", "/v1/token", b"username=" + b"%ff" * 5000 + b"&password=x", FORM),
    "20,000 parameters": Bad("GET", "/v1/orders?" + "a&" * 20_000),
    "a parameter of 60 KB": Bad("GET", "/v1/orders?" + "x" * 60_000),
    "a filter of 60 KB": Bad("GET", "/v1/orders?filter=" + "x" * 60_000),
}
"""By what is bad about it. A body of 1 MiB is as large as one may be."""
