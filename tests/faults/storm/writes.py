"""What a client requests, how it recognizes the effect, and the answer it got."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from services.fields import now
from tests.faults.storm.wire import Reply


class Kind(StrEnum):
    """A kind of write. Its key is also in what it writes, where a query can find it."""

    order = "order"
    """`orders.reference` is the key."""
    cancel = "cancel"
    refund = "refund"
    """`refunds.reason` is the key."""
    transfer = "transfer"
    """`transfers.note` is the key."""
    batch = "batch"
    """`transfers.note` is the key and the number in the batch."""
    hold = "hold"
    """`transfers.note` is the key."""
    post = "post"
    void = "void"
    registration = "registration"
    """`users.email` begins with the key; this one request has no `Idempotency-Key`."""


_DEFINITE: dict[Kind, frozenset[int]] = {
    Kind.order: frozenset({201, 402}),
    # The order may be final already; the seller may have spent what a refund would take.
    Kind.cancel: frozenset({200, 402, 409}),
    Kind.refund: frozenset({201, 402, 409}),
    Kind.transfer: frozenset({201, 402}),
    Kind.batch: frozenset({200, 402}),
    Kind.hold: frozenset({201, 402}),
    Kind.post: frozenset({200}),
    Kind.void: frozenset({200}),
    # The second try of one whose reply was lost.
    Kind.registration: frozenset({201, 409}),
}


@dataclass(slots=True)
class Write:
    """One request that takes effect at most once, however often it is sent."""

    kind: Kind
    by: int | None
    """The caller."""
    path: str
    key: str
    body: bytes
    on: str | None = None
    """The order or transfer that it is about, acknowledged before."""
    first: Reply | None = None
    """The first complete definite answer."""
    glimpsed: int | None = None
    """A 2xx whose reply broke off after the status line: it still counts as a promise."""
    tries: int = 0

    @property
    def has_key(self) -> bool:
        return self.kind is not Kind.registration

    @property
    def acknowledged(self) -> bool:
        return self.glimpsed is not None or (self.first is not None and self.first.status < 300)

    def expects(self, status: int) -> bool:
        return status in _DEFINITE[self.kind]

    def effects(self) -> dict[str, str]:
        """What the complete 2xx names, by what it must be found by: note or reference -> id."""
        if self.first is None or self.first.status >= 300:
            return {}
        told: dict[str, Any] = json.loads(self.first.body)
        match self.kind:
            case Kind.order | Kind.transfer | Kind.hold | Kind.refund:
                return {self.key: str(UUID(told["id"]))}
            case Kind.batch:
                made = [result["transfer"] for result in told["results"] if result["status"] == "posted"]
                return {one["note"]: str(UUID(one["id"])) for one in made}
            case _:
                return {}

    def __str__(self) -> str:
        answer = f"answered {self.first}" if self.first else f"glimpsed {self.glimpsed}"
        return f"{self.kind} {self.key} by {self.by} {self.path}, {self.tries} tries, {answer}"


@dataclass(slots=True)
class Shop:
    """The users and products that take part."""

    buyers: Sequence[int]
    sellers: Sequence[int]
    products: Sequence[int]
    collector: int
    """A user whose statement is long."""
    entries: int
    """The least number of entries that it has."""


@dataclass(slots=True)
class Writer:
    """Makes the writes of one client, each with a key of its own."""

    dice: random.Random
    shop: Shop
    name: str
    number: int = field(default=0)

    def any(self) -> Write:
        kinds = [self.order, self.transfer, self.batch, self.hold, self.registration]
        [make] = self.dice.choices(kinds, weights=(45, 30, 5, 15, 5))
        return make()

    def order(self) -> Write:
        products = self.dice.sample(list(self.shop.products), self.dice.randint(1, 3))
        items = [{"product_id": product, "quantity": self.dice.randint(1, 3)} for product in products]
        refuse = {"on_insufficient_credits": "refuse"}
        return self._write(Kind.order, "/v1/orders", {"items": items, "reference": self._key(), **refuse})

    def transfer(self) -> Write:
        return self._write(Kind.transfer, "/v1/transfers", self._credits(self._key()))

    def batch(self) -> Write:
        key = self._key()
        transfers = [self._credits(f"{key}/{number}") for number in range(self.dice.randint(2, 6))]
        mode = self.dice.choice(("independent", "atomic"))
        return self._write(Kind.batch, "/v1/transfers/batch", {"mode": mode, "transfers": transfers})

    def hold(self) -> Write:
        expires_at = (now() + timedelta(days=1)).isoformat()
        return self._write(Kind.hold, "/v1/holds", {**self._credits(self._key()), "expires_at": expires_at})

    def registration(self) -> Write:
        key = self._key()
        body = {"email": f"{key}@example.com", "full_name": "Storm User", "password": f"password of {key}"}
        return self._write(Kind.registration, "/v1/users", body)

    def follow_up(self, done: Write) -> Write | None:
        """The writes that may follow an acknowledged one."""
        if done.first is None or done.first.status >= 300:
            return None
        if done.kind is Kind.hold and self.dice.random() < 0.7:
            kind = self.dice.choice((Kind.post, Kind.void))
            recipient = json.loads(done.body)["to_user_id"]
            return self._about(done, kind, f"/v1/transfers/{{}}/{kind}", {}, by=recipient)
        if done.kind is Kind.order and self.dice.random() < 0.15:
            return self._about(done, Kind.cancel, "/v1/orders/{}/cancel", {"reason": self._key()}, by=done.by)
        if done.kind is Kind.order and self.dice.random() < 0.15:
            # All products are the first seller's.
            by = self.shop.sellers[0]
            return self._about(done, Kind.refund, "/v1/orders/{}/refunds", {"reason": self._key()}, by=by)
        return None

    def _about(self, done: Write, kind: Kind, path: str, body: dict[str, Any], *, by: int | None) -> Write:
        [target] = done.effects().values()
        write = self._write(kind, path.format(target), body)
        write.by, write.on = by, target
        return write

    def _credits(self, note: str) -> dict[str, Any]:
        amount = f"{self.dice.randint(1, 300) / 100:.2f}"
        return {"to_user_id": self.dice.choice(self.shop.sellers), "amount": amount, "note": note}

    def _key(self) -> str:
        """The key of the write that is being made."""
        return f"{self.name}-{self.number}"

    def _write(self, kind: Kind, path: str, body: dict[str, Any]) -> Write:
        by = None if kind is Kind.registration else self.dice.choice(self.shop.buyers)
        write = Write(kind, by, path, self._key(), json.dumps(body).encode())
        self.number += 1
        return write
