"""Demo data that `waybill up` puts into a development database, so that an order can be placed right away."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from services.catalog import service as catalog
from services.catalog.schemas import CategoryCreate, ProductCreate
from services.cli.facts import Credentials, DemoKey, Facts
from services.cli.users import new_password
from services.credits.ledger.service import top_up
from services.credits.schemas import TopUpCreate
from services.database import open_database
from services.settings import Settings
from services.skew import follow_database
from services.unit_of_work import UnitOfWork, background
from services.users import service as users
from services.users.keys import service as keys
from services.users.keys.schemas import ApiKeyCreate
from services.users.keys.secret import hash_of
from services.users.keys.service import KeyLimits
from services.users.models import User
from services.users.passwords import Passwords
from services.users.rights import Role
from services.users.schemas import UserCreate

FIRST_CREDITS = Decimal("10000.00")
_CATEGORY = "Stationery"
_PROGRAM = "demo program"
_PROGRAM_SCOPES = ["orders:read", "orders:write", "credits:read", "keys:rotate"]


@dataclass(frozen=True, slots=True)
class _Person:
    email: str
    full_name: str
    role: Role = Role.customer
    buys: bool = False


@dataclass(frozen=True, slots=True)
class _Offer:
    sku: str
    name: str
    price: str
    stock: int


_OPERATOR = _Person("operator@waybill.example", "Olga Operator", Role.operator)
_APPROVER = _Person("second-operator@waybill.example", "Otto Operator", Role.operator)
_ADMIN = _Person("admin@waybill.example", "Ada Admin", Role.admin)
_SELLER = _Person("seller@waybill.example", "Sami Seller", Role.seller)
_BUYERS = (
    _Person("buyer@waybill.example", "Bea Buyer", buys=True),
    _Person("second-buyer@waybill.example", "Ben Buyer", buys=True),
)
_OFFERS = (
    _Offer("PEN-BLUE", "Ballpoint pen, blue", "1.20", 100_000),
    _Offer("PAPER-A4", "Paper A4, 500 sheets", "4.95", 20_000),
    _Offer("INK-BLACK", "Ink, black, 30 ml", "12.50", 500),
)


async def seed(settings: Settings, facts: Facts, keep: Callable[[], None]) -> None:
    """Create the demo users, key, products and credits that are missing, and note the credentials in `facts`.

    Existing users are left unchanged, but one whose password in `facts` is missing or wrong gets a new password. `keep`
    is called before the commit: credentials that were not saved would be lost.
    """
    async with open_database(settings, "seed") as database, background(lambda: UnitOfWork(database.write)) as uow:
        await follow_database(database.engine)
        people = _People(uow, Passwords(settings), {known.email: known for known in _known(facts)})
        operator = await people.find_or_make(_OPERATOR)
        approver = await people.find_or_make(_APPROVER)
        admin = await people.find_or_make(_ADMIN)
        buyers = [await people.find_or_make(buyer) for buyer in _BUYERS]
        seller = await people.find_or_make(_SELLER)
        facts.operator = operator[1] if operator else None
        facts.approver = approver[1] if approver else None
        facts.admin = admin[1] if admin else None
        facts.users = [found[1] for found in (*buyers, seller) if found]
        facts.product_ids = await _find_or_make_products(uow, seller[0], settings) if seller else []
        facts.api_key = await _find_or_make_key(uow, *buyers[0], facts.api_key, settings) if buyers[0] else None
        keep()


def _known(facts: Facts) -> list[Credentials]:
    return [*facts.users, *(one for one in (facts.operator, facts.approver, facts.admin) if one is not None)]


@dataclass(frozen=True, slots=True)
class _People:
    uow: UnitOfWork
    passwords: Passwords
    known: dict[str, Credentials]

    async def find_or_make(self, person: _Person) -> tuple[User, Credentials] | None:
        """The user and their credentials; None if an operator has deleted the user."""
        user = await self.uow.users.by_email(person.email)
        if user is None:
            if await self.uow.users.email_taken(person.email):
                return None
            return await self._make(person)
        known = self.known.get(person.email)
        if known is None or not await self.passwords.matches(user.hashed_password, known.password):
            known = Credentials(email=person.email, password=new_password(), full_name=user.full_name)
            await self.uow.users.update(user, hashed_password=await self.passwords.hash(known.password))
        return user, known

    async def _make(self, person: _Person) -> tuple[User, Credentials]:
        made = Credentials(email=person.email, password=new_password(), full_name=person.full_name)
        wanted = UserCreate.model_validate(made.model_dump())
        user = await users.register(self.uow, self.passwords, wanted, person.role)
        if person.buys:
            await top_up(self.uow, TopUpCreate(user_id=user.id, amount=FIRST_CREDITS, note="to try it out"))
        return user, made


async def _find_or_make_key(
    uow: UnitOfWork, owner: User, credentials: Credentials, known: DemoKey | None, settings: Settings
) -> DemoKey:
    """The key of the demo program; a new one if the known one cannot be used."""
    if known is not None and await uow.users.with_key(hash_of(known.key), require_totp=False) is not None:
        return known
    for lost in await uow.api_keys.of_user(owner.id):
        if lost.name == _PROGRAM:
            await keys.revoke(uow, owner.id, lost.id)
    wanted = ApiKeyCreate.model_validate(
        {"name": _PROGRAM, "scopes": _PROGRAM_SCOPES, "current_password": credentials.password}
    )
    made = await keys.make(uow, owner, wanted, KeyLimits.of(settings))
    return DemoKey(key=made.secret, scopes=made.row.scopes)


async def _find_or_make_products(uow: UnitOfWork, seller: User, settings: Settings) -> list[int]:
    ids = await uow.products.ids_by_sku(seller.id)
    missing = [offer for offer in _OFFERS if offer.sku not in ids]
    if missing:
        category_id = await _find_or_make_category(uow)
        for offer in missing:
            wanted = ProductCreate.model_validate(
                {
                    "sku": offer.sku,
                    "name": offer.name,
                    "price": offer.price,
                    "category_id": category_id,
                    "stock": offer.stock,
                }
            )
            made = await catalog.create_product(uow, seller.id, wanted, settings.products_per_seller)
            ids[offer.sku] = made.id
    return [ids[offer.sku] for offer in _OFFERS]


async def _find_or_make_category(uow: UnitOfWork) -> int:
    found = await uow.categories.by_name(_CATEGORY)
    if found is None:
        found = await catalog.create_category(uow, CategoryCreate(name=_CATEGORY))
    elif found.deleted_at is not None:
        await uow.categories.restore(found)
    return found.id
