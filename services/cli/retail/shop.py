"""What must exist before the first order: users with credits, categories, products with stock.

Every data set has its own seller, products and customers, named after the hash of the file. So what exists under such a
name was created for this very file, with the stock or the credits that its rules give, and is never topped up again:
neither by a second run, nor by one with another `--limit`, nor after the service has deleted its idempotency keys.
"""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.cli.client import Login, Query, Service, ServiceError, Target, expect, for_each, together
from services.cli.credits import TopUp, issue_credits
from services.cli.progress import Display
from services.cli.retail.plan import GUEST, Invoice, Plan, Product, credits_of

DOMAIN = "replay.waybill.example"
PAGE = 200

_LOOKS, _LOOK_SECONDS = 6, 0.5

_GOODS, _SERVICES = "Online Retail: goods", "Online Retail: postage, fees and other services"
_PLAIN_NUMBER = re.compile(r"[0-9]{1,20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Buyer:
    """A customer of the file as a user of the service."""

    login: Login
    user_id: int


@dataclass(slots=True)
class Shop:
    """Everything that orders refer to: ids by product number of the plan, users by customer."""

    seller: Login
    product_ids: dict[int, int] = field(default_factory=dict)
    buyers: dict[str, Buyer] = field(default_factory=dict)


class ShopKeeper:
    """Creates what the given invoices need and does not exist yet. Raises `ServiceError`."""

    def __init__(self, service: Service, target: Target, plan: Plan, display: Display, clients: int) -> None:
        self._service = service
        self._operator = target.operator
        self._target = target
        self._plan = plan
        self._display = display
        self._clients = clients
        self._shop = Shop(seller=self._login("seller"))

    async def open(self, invoices: Sequence[Invoice]) -> Shop:
        users = await self._known_users()
        seller_id = await self._find_or_register(self._shop.seller, f"Online Retail {self._plan.tag}", users)
        # Password hashing keeps a thread of the service busy; products keep its database busy.
        await together(self._make_buyers(invoices, users), self._make_products(invoices, seller_id))
        return self._shop

    def _login(self, name: str) -> Login:
        email = f"{name}@{self._plan.tag}.{DOMAIN}"
        secret = hmac.new(self._operator.password.encode(), email.encode(), hashlib.sha256)
        return Login(email, secret.hexdigest())

    async def _known_users(self) -> dict[str, int]:
        """Ids by e-mail address. Trying to register an existing user would cost the service a password hash."""
        params: Query = {"filter": f"email:like:@{self._plan.tag}.{DOMAIN}", "limit": PAGE}
        users = await self._service.read_pages(self._operator, "/v1/users", params)
        return {user["email"]: user["id"] for user in users}

    async def _find_or_register(self, login: Login, full_name: str, known: dict[str, int]) -> int:
        if login.email in known:
            return known[login.email]
        reply = await self._service.register(login, full_name)
        if reply.status != 409:
            return int(expect(reply, f"registering {login.email}").body["id"])
        try:
            return int((await self._service.read(login, "/v1/users/me"))["id"])
        except ServiceError as error:
            raise ServiceError(
                f"{error}. An earlier import of this file created the user; since then it was deleted, or the "
                "operator's password, from which the user's password derives, was changed"
            ) from error

    async def _make_buyers(self, invoices: Sequence[Invoice], known: dict[str, int]) -> None:
        customers = list(dict.fromkeys(invoice.customer for invoice in invoices))
        advance = self._display.phase("customers", len(customers))

        async def make(customer: str) -> None:
            login = self._login(_user_name(customer))
            was_known = login.email in known
            full_name = f"Customer {customer}"[:200] if customer != GUEST else "Guests"
            buyer = Buyer(login, await self._find_or_register(login, full_name, known))
            if not (was_known and await self._has_credits(login)):
                await self._top_up(buyer, credits_of(self._plan.spend[customer]))
            # Sign in here, so that the orders do not wait for it: it costs the service a password hash, too.
            await login.current_token(self._service)
            self._shop.buyers[customer] = buyer
            advance(1)

        await for_each(customers, make, self._clients)

    async def _has_credits(self, login: Login) -> bool:
        """Whether the customer's statement shows our top-up.

        It is the first entry on such an account, so reading the first page is enough.
        """
        page = await self._service.read(login, "/v1/accounts/me/statement", {"sort": "version", "limit": PAGE})
        return any(
            entry["transfer"]["kind"] == "top_up" and entry["transfer"]["note"] == self._note for entry in page["data"]
        )

    @property
    def _note(self) -> str:
        return f"replay of {self._plan.digest}"

    async def _top_up(self, buyer: Buyer, amount: str) -> None:
        key = f"replay-{self._plan.tag}-{buyer.login.email.partition('@')[0]}"
        wanted = TopUp(buyer.user_id, buyer.login.email, amount, self._note)
        await issue_credits(self._service, self._target, wanted, key)

    async def _make_products(self, invoices: Sequence[Invoice], seller_id: int) -> None:
        needed = sorted({product for invoice in invoices for product in invoice.products})
        advance = self._display.phase("products", len(needed))
        services = any(self._plan.products[number].is_service for number in needed)
        categories = {False: await self._category(_GOODS), True: await self._category(_SERVICES) if services else 0}
        known = await self._known_products(seller_id)

        async def make(number: int) -> None:
            product = self._plan.products[number]
            product_id = known.get(product.sku)
            if product_id is None:
                product_id = await self._make_product(product, categories[product.is_service], seller_id)
            self._shop.product_ids[number] = product_id
            advance(1)

        await for_each(needed, make, self._clients)

    async def _make_product(self, product: Product, category_id: int, seller_id: int) -> int:
        body = {
            "sku": product.sku,
            "name": product.name,
            "price": credits_of(product.cents),
            "category_id": category_id,
            "stock": product.demand,
        }
        # Without a key: the SKU can be used only once anyway, and storing thousands of replies costs the service time.
        reply = await self._service.call(self._shop.seller, "POST", "/v1/products", body=body)
        if reply.status != 409:
            return int(expect(reply, f"offering {product.sku}").body["id"])
        # It exists, but the reply was lost. The list may come from a replica that lags.
        for _ in range(_LOOKS):
            found = (await self._known_products(seller_id, product.sku)).get(product.sku)
            if found is not None:
                return found
            await asyncio.sleep(_LOOK_SECONDS)
        raise ServiceError(f"offering {product.sku} returned {reply}, but it is not for sale: activate it again")

    async def _known_products(self, seller_id: int, only: str | None = None) -> dict[str, int]:
        """Ids by SKU of the products that the seller offers, or of `only` one of them."""
        filters = [f"seller_id:eq:{seller_id}", *([] if only is None else [f"sku:eq:{only}"])]
        rows = await self._service.read_pages(self._shop.seller, "/v1/products", {"filter": filters, "limit": PAGE})
        return {row["sku"]: row["id"] for row in rows}

    async def _category(self, name: str) -> int:
        found = await self._find_category(name)
        if found is not None:
            return found
        reply = await self._service.call(self._operator, "POST", "/v1/categories", body={"name": name})
        if reply.status != 409:
            return int(expect(reply, f"creating the category {name}").body["id"])
        found = await self._find_category(name)
        if found is None:
            raise ServiceError(f"the category {name} can be neither created nor found: {reply}")
        return found

    async def _find_category(self, name: str) -> int | None:
        # Names are unique regardless of case.
        rows = await self._service.read_pages(self._operator, "/v1/categories", {"filter": f"name:like:{name}"})
        return next((int(row["id"]) for row in rows if row["name"].lower() == name.lower()), None)


def _user_name(customer: str) -> str:
    """The part of the address before the @: the customer's number, if it is one."""
    if customer == GUEST:
        return "guests"
    if _PLAIN_NUMBER.fullmatch(customer):
        return f"customer-{customer}"
    return f"customer-{hashlib.sha256(customer.encode()).hexdigest()[:20]}"
