"""The demo's shop: sellers with products, and buyers with credits, made through the API like those of anyone."""

import hashlib
import hmac
from dataclasses import dataclass, field
from uuid import uuid4

from services.cli.client import Login, Service, ServiceError, Target, expect, for_each
from services.cli.credits import TopUp, issue_credits

DOMAIN = "demo.waybill.example"
CREDITS = "5000.00"
_CATEGORY = "Demo"
_SELLERS, _BUYERS = 2, 8
_CLIENTS = 4
"""Users that are made at the same time: password hashing keeps the service busy."""

_OFFERS = (
    ("Notebook, ruled", "3.20"),
    ("Fountain pen", "24.90"),
    ("Envelopes, 50", "4.10"),
    ("Stapler", "11.75"),
    ("Desk lamp", "39.00"),
)
PIECES = 400
"""How many pieces of each product come in at a time."""

_DEAR = ("PRESS", "Printing press", "48000.00")
"""More than any buyer has."""

_SOLD_OUT = ("GLOBE", "Globe, signed", "1.50")


@dataclass(slots=True)
class Person:
    """A user of the demo."""

    login: Login
    user_id: int


@dataclass(slots=True)
class Seller(Person):
    """A user with products: those for every day, a dear one and one that is sold out, by their ids."""

    products: list[int] = field(default_factory=list)
    dear: int = 0
    sold_out: int = 0


@dataclass(slots=True)
class Shop:
    """Everyone who takes part."""

    sellers: list[Seller]
    buyers: list[Person]


class ShopKeeper:
    """Creates what does not exist yet, and fills up stock and credits. Raises `ServiceError`."""

    def __init__(self, service: Service, target: Target) -> None:
        self._service = service
        self._target = target
        self._category_id = 0

    async def open(self) -> Shop:
        self._category_id = await self._category()
        people: dict[str, Person] = {}

        async def find(name: str) -> None:
            people[name] = await self._person(name)

        sellers = [f"seller-{number}" for number in range(1, _SELLERS + 1)]
        buyers = [f"buyer-{number}" for number in range(1, _BUYERS + 1)]
        await for_each([*sellers, *buyers], find, _CLIENTS)
        shop = Shop(
            [Seller(people[name].login, people[name].user_id) for name in sellers], [people[name] for name in buyers]
        )
        await for_each(shop.sellers, self._offer, _CLIENTS)
        await for_each(shop.buyers, self.top_up, _CLIENTS)
        return shop

    async def restock(self, seller: Seller) -> None:
        """More pieces of what is ordered every day."""
        for product_id in seller.products:
            reply = await self._service.call(
                seller.login,
                "POST",
                f"/v1/products/{product_id}/stock",
                body={"change": PIECES},
                key=f"demo-{uuid4().hex}",
            )
            expect(reply, f"restocking product {product_id}")

    async def _offer(self, seller: Seller) -> None:
        """Create the seller's products that do not exist. Their stock stays, or is 0."""
        mark = seller.login.email.partition("@")[0].upper()
        offers = [(str(number), *offer) for number, offer in enumerate(_OFFERS, 1)]
        wanted = [
            {"sku": f"{mark}-{sku}", "name": name, "price": price, "category_id": self._category_id}
            for sku, name, price in (*offers, _DEAR, _SOLD_OUT)
        ]
        reply = await self._service.call(seller.login, "PUT", "/v1/products", body={"products": wanted})
        rows = expect(reply, f"offering the products of {seller.login.email}").body["products"]
        *seller.products, seller.dear, seller.sold_out = [row["id"] for row in rows]
        await self.restock(seller)

    async def top_up(self, buyer: Person) -> None:
        """Issue credits to the buyer."""
        wanted = TopUp(buyer.user_id, buyer.login.email, CREDITS, "for the demo")
        await issue_credits(self._service, self._target, wanted, f"demo-{uuid4().hex}")

    async def _person(self, name: str) -> Person:
        email = f"{name}@{DOMAIN}"
        # The same in each run, so that the next one can sign in.
        secret = hmac.new(self._target.operator.password.encode(), email.encode(), hashlib.sha256).hexdigest()
        login = Login(email, secret)
        reply = await self._service.register(login, name.replace("-", " ").capitalize())
        if reply.status != 409:
            expect(reply, f"registering {email}")
        try:
            return Person(login, int((await self._service.read(login, "/v1/users/me"))["id"]))
        except ServiceError as error:
            raise ServiceError(
                f"{error}. An earlier demo created the user; since then it was deleted, or the operator's password, "
                "from which the user's password derives, was changed"
            ) from error

    async def _category(self) -> int:
        operator = self._target.operator
        for _ in range(2):
            rows = await self._service.read_pages(operator, "/v1/categories", {"filter": f"name:like:{_CATEGORY}"})
            for row in rows:
                if row["name"] == _CATEGORY:
                    return int(row["id"])
            reply = await self._service.call(operator, "POST", "/v1/categories", body={"name": _CATEGORY})
            if reply.status != 409:
                return int(expect(reply, f"creating the category {_CATEGORY}").body["id"])
        raise ServiceError(f"the category {_CATEGORY} can be neither created nor found")
