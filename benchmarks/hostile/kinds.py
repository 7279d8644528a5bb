"""What hostile clients send, by their kind."""

import json
import random
from collections.abc import Iterator, Sequence
from enum import StrEnum
from urllib.parse import quote, urlencode

from benchmarks.bad_requests import BAD, FORM, JSON, MIB


class Kind(StrEnum):
    bad_bodies = "bad bodies"
    slow_heads = "slow heads"
    huge_headers = "huge headers"
    deep_json = "deep JSON"
    sign_ins = "sign-ins"
    searches = "searches"


SHARES = {
    Kind.bad_bodies: 34,
    Kind.slow_heads: 34,
    Kind.huge_headers: 33,
    Kind.deep_json: 33,
    Kind.sign_ins: 33,
    Kind.searches: 33,
}
"""Clients of each kind; 200 together."""

HALF_A_HEAD = b"POST /v1/orders HTTP/1.1\r\nHost: waybill\r\nX-Slow: "
"""What a slow client sends at once. After that it sends one byte at a time."""

_DEPTH = 500_000


def requests(kind: Kind, token: str, seed: int) -> Iterator[bytes]:
    """An endless series of requests, all different or as expensive as one can make them, by the owner of the token."""
    chance = random.Random(seed)
    if kind is Kind.sign_ins:
        while True:
            yield _sign_in(chance)
    if kind is Kind.searches:
        while True:
            # Those without a token are counted by address.
            yield _request("GET", _search(chance), chance.choice([token, ""]))
    few = {Kind.bad_bodies: _bad_bodies, Kind.huge_headers: _huge_headers, Kind.deep_json: _deep_json}[kind](token)
    while True:
        yield chance.choice(few)


def _bad_bodies(token: str) -> Sequence[bytes]:
    return [_request(bad.method, bad.path, token, bad.body, bad.content_type) for bad in BAD.values()]


def _huge_headers(token: str) -> Sequence[bytes]:
    fields = ["X-Large: " + "x" * MIB, "Cookie: " + "a=1; " * 20_000, "\r\n".join(f"X-{n}: 1" for n in range(5000))]
    return [
        *(_request("GET", "/v1/orders", token, fields=field) for field in fields),
        _request("GET", "/v1/orders?" + "x" * MIB, token),
        # As large as a head may be.
        _request("GET", "/v1/orders", token, fields="X-Large: " + "x" * 60_000),
    ]


def _deep_json(token: str) -> Sequence[bytes]:
    lists, objects = b"[" * _DEPTH, b'{"a":' * (MIB // 8)
    few, fewer = 3000, 400
    notes = b'{"note":' * few + b"1" + b"}" * few
    return [
        _request("PUT", "/v1/products", token, lists + b"]" * _DEPTH),
        _request("PUT", "/v1/products", token, objects + b"1" + b"}" * (MIB // 8)),
        _request("PUT", "/v1/products", token, b'{"products":' + lists),
        _request("POST", "/v1/orders", token, b'{"items":' + b"[" * few + b"]" * few + b"}"),
        _request("POST", "/v1/orders", token, b'{"items":' + b"[" * fewer + b"]" * fewer + b"}"),
        _request("POST", "/v1/transfers/batch", token, b'{"transfers":[' + notes + b"]}"),
        _request("POST", "/v1/users", "", b'{"email":' + b"[" * few + b"]" * few + b"}"),
    ]


def _sign_in(chance: random.Random) -> bytes:
    """An attempt with a wrong password, mostly for an account that does not exist."""
    form = {"grant_type": "password", "username": f"user{chance.randrange(10_000)}@example.com", "password": "not this"}
    return _request("POST", "/v1/token", "", urlencode(form).encode(), FORM)


def _search(chance: random.Random) -> str:
    texts = ["product", "Product number", str(chance.randrange(100_000)), "zzz", "%_%", "er " * 60, "ü" * 100]
    wanted = {"q": chance.choice(texts), "limit": "100"}
    if chance.random() < 0.5:
        wanted["sort"] = chance.choice(["name", "-name", "id"])
    return "/v1/products?" + urlencode(wanted, quote_via=quote)


def _request(
    method: str, path: str, token: str, body: bytes = b"", content_type: str = JSON, *, fields: str = "X-Hostile: 1"
) -> bytes:
    """A request; without a token it is anonymous."""
    head = f"{method} {path} HTTP/1.1\r\nHost: waybill\r\n{fields}\r\nIdempotency-Key: hostile\r\n"
    if token:
        head += f"Authorization: Bearer {token}\r\n"
    if body:
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def explain(status: int, body: bytes) -> str:
    """A reply in short: its status, and the code of an error."""
    if status < 400:
        return str(status)
    try:
        document = json.loads(body)
    except ValueError:
        return f"{status} without JSON"
    # The token's route answers errors as OAuth does.
    return f"{status} {document.get('code', document.get('error', 'without a code'))}"
