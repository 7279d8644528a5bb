"""What the ledger must amount to: a small model in memory of credits, stock and orders, one step after another."""

from dataclasses import dataclass, field
from decimal import Decimal
from uuid import UUID

Cents = Decimal


@dataclass
class Purse:
    """One account's credits."""

    posted: Cents = Decimal(0)
    held: Cents = Decimal(0)
    closed: bool = False

    @property
    def available(self) -> Cents:
        return self.posted - self.held


@dataclass
class Goods:
    """One product: who sells it, for how much, and how many there are."""

    seller: int
    price: Cents
    on_hand: int
    reserved: int = 0


@dataclass
class Line:
    product: int
    quantity: int
    returned: int = 0

    @property
    def left(self) -> int:
        return self.quantity - self.returned


@dataclass
class Sale:
    """An order: its buyer, its lines and its status. It is `late` if its holds have expired."""

    id: UUID
    buyer: int
    lines: list[Line]
    status: str
    late: bool = False


@dataclass
class Promise:
    """A hold between two users. It is `late` if it has expired."""

    id: UUID
    payer: int
    payee: int
    amount: Cents
    late: bool
    state: str = "pending"
    posted: Cents = Decimal(0)
    reversed: bool = False


@dataclass
class Gift:
    """Credits that moved immediately. Without a sender, they were issued."""

    id: UUID
    sender: int | None
    recipient: int
    amount: Cents
    reversed: bool = False


@dataclass
class Wish:
    """An adjustment that waits for a second operator."""

    id: UUID
    user: int
    amount: Cents
    state: str = "pending"


@dataclass
class Model:
    """The whole model. Each method is one step, and returns how it must end."""

    purses: dict[int, Purse]
    goods: dict[int, Goods]
    issued: Cents = Decimal(0)
    sales: list[Sale] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)

    def close(self, user: int) -> str:
        purse = self.purses[user]
        if purse.closed or purse.held:
            return "conflict"
        purse.closed = True
        return "done"

    def reopen(self, user: int) -> str:
        if not self.purses[user].closed:
            return "conflict"
        self.purses[user].closed = False
        return "done"

    def issue(self, user: int, amount: Cents) -> str:
        if self.purses[user].closed:
            return "account_closed"
        if self.purses[user].available + amount < 0:
            return "insufficient_credits"
        self.purses[user].posted += amount
        self.issued += amount
        return "done"

    def transfer(self, sender: int, recipient: int, amount: Cents) -> str:
        if sender == recipient:
            return "same_account"
        if self.purses[sender].closed:
            return "account_closed"
        if self.purses[sender].available < amount:
            return "insufficient_credits"
        if self.purses[recipient].closed:
            return "unknown_recipient"
        self.purses[sender].posted -= amount
        self.purses[recipient].posted += amount
        return "done"

    def promise(self, payer: int, payee: int, amount: Cents) -> str:
        if payer == payee:
            return "same_account"
        if self.purses[payer].closed:
            return "account_closed"
        if self.purses[payer].available < amount:
            return "insufficient_credits"
        if self.purses[payee].closed:
            return "unknown_recipient"
        self.purses[payer].held += amount
        return "done"

    def resolve(self, promise: Promise, state: str, posted: Cents = Decimal(0)) -> str:
        """Post this amount of it, or nothing."""
        told = {
            "posted": "transfer_already_posted",
            "voided": "transfer_already_voided",
            "expired": "transfer_expired",
        }
        if promise.state != "pending":
            return told[promise.state]
        if promise.late and state != "expired":
            return "transfer_expired"
        if posted > promise.amount:
            return "amount_invalid"
        if state == "posted" and self.purses[promise.payee].closed:
            return "account_closed"
        promise.state, promise.posted = state, posted
        self.purses[promise.payer].held -= promise.amount
        self.purses[promise.payer].posted -= posted
        self.purses[promise.payee].posted += posted
        return "done"

    def expire(self) -> None:
        """What the scheduled sweep does."""
        for promise in self.promises:
            if promise.late and promise.state == "pending":
                self.resolve(promise, "expired")
        for sale in self.sales:
            if sale.late and sale.status == "pending":
                self.free(sale, "cancelled")

    def take_back(self, sender: int | None, recipient: int, amount: Cents) -> str:
        """A reversal; without a recipient if the credits had been issued."""
        if self.purses[recipient].closed or (sender is not None and self.purses[sender].closed):
            return "account_closed"
        if self.purses[recipient].available < amount:
            return "insufficient_credits"
        self.purses[recipient].posted -= amount
        if sender is None:
            self.issued -= amount
        else:
            self.purses[sender].posted += amount
        return "done"

    def cost(self, sale: Sale) -> Cents:
        return sum((self.goods[line.product].price * line.quantity for line in sale.lines), Decimal(0))

    def pays_a_closed_account(self, sale: Sale) -> bool:
        return any(self.purses[self.goods[line.product].seller].closed for line in sale.lines)

    def hold(self, sale: Sale) -> str:
        """Set the buyer's credits aside."""
        cost = self.cost(sale)
        if self.purses[sale.buyer].closed or self.pays_a_closed_account(sale):
            return "account_closed"
        if self.purses[sale.buyer].available < cost:
            return "insufficient_credits"
        self.purses[sale.buyer].held += cost
        return "done"

    def free(self, sale: Sale, status: str) -> None:
        """The hold ends, and nothing is paid."""
        self.purses[sale.buyer].held -= self.cost(sale)
        sale.status = status

    def process(self) -> None:
        """What a worker does with the pending orders, oldest first."""
        for sale in self.sales:
            if sale.status != "pending":
                continue
            if sale.late:
                self.free(sale, "cancelled")
                continue
            if self.pays_a_closed_account(sale):
                self.free(sale, "rejected")
                continue
            wanted: dict[int, int] = {}
            for line in sale.lines:
                wanted[line.product] = wanted.get(line.product, 0) + line.quantity
            if any(self.goods[product].on_hand - self.goods[product].reserved < n for product, n in wanted.items()):
                self.free(sale, "rejected")
                continue
            self.free(sale, "confirmed")
            for line in sale.lines:
                goods = self.goods[line.product]
                goods.reserved += line.quantity
                self.purses[sale.buyer].posted -= goods.price * line.quantity
                self.purses[goods.seller].posted += goods.price * line.quantity

    def give_back(self, sale: Sale, pieces: dict[int, int]) -> str:
        """The number of pieces of each line, by its place in the order."""
        due: dict[int, Cents] = {}
        for place, quantity in pieces.items():
            goods = self.goods[sale.lines[place].product]
            due[goods.seller] = due.get(goods.seller, Decimal(0)) + goods.price * quantity
        if any(self.purses[user].closed for user in (*due, sale.buyer)):
            return "account_closed"
        if any(self.purses[seller].available < amount for seller, amount in due.items()):
            return "insufficient_credits"
        for seller, amount in due.items():
            self.purses[seller].posted -= amount
            self.purses[sale.buyer].posted += amount
        for place, quantity in pieces.items():
            line = sale.lines[place]
            line.returned += quantity
            if sale.status == "confirmed":
                self.goods[line.product].reserved -= quantity
            else:
                self.goods[line.product].on_hand += quantity
        return "done"

    def cancel(self, sale: Sale) -> str:
        if sale.status not in ("awaiting_payment", "pending", "confirmed"):
            return "conflict"
        if sale.status == "pending":
            self.free(sale, "cancelled")
        elif sale.status == "confirmed":
            left = {place: line.left for place, line in enumerate(sale.lines) if line.left}
            told = self.give_back(sale, left) if left else "done"
            if told != "done":
                return told
        sale.status = "cancelled"
        return "done"

    def refund(self, sale: Sale, place: int, quantity: int) -> str:
        if sale.status not in ("confirmed", "fulfilled"):
            return "conflict"
        if quantity > sale.lines[place].left:
            return "invalid_input"
        outcome = self.give_back(sale, {place: quantity})
        if outcome == "done" and sale.status == "confirmed" and not any(line.left for line in sale.lines):
            sale.status = "cancelled"
        return outcome

    def fulfil(self, sale: Sale) -> str:
        if sale.status != "confirmed":
            return "conflict"
        for line in sale.lines:
            goods = self.goods[line.product]
            goods.on_hand -= line.left
            goods.reserved -= line.left
        sale.status = "fulfilled"
        return "done"
