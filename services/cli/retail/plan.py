"""What to place: pure rules that turn lines of the file into products, customers and invoices.

Amounts are whole cents here; `credits_of` formats them as the API does.
"""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from services.cli.retail.reasons import InvoiceReason, LineReason
from services.cli.retail.source import BadLine, Line
from services.fields import MAX_CREDITS
from services.orders.models import MAX_ITEMS

MAX_QUANTITY = 1_000_000
"""The most units in one line of an order (`services.fields.Quantity`)."""

MAX_STOCK = 1_000_000_000
"""The most units that a product can start with (`services.catalog.schemas.Stock`)."""

_MAX_CENTS = int(MAX_CREDITS * 100)
_LONGEST_NAME = 200
_LONGEST_SKU = 64
_DIGITS_OF_GOODS = 4

GUEST = ""
"""The customer of every invoice without one."""


@dataclass(slots=True)
class Product:
    """One code at one price. `demand` is the number of units that all accepted invoices of the file need."""

    code: str
    cents: int
    name: str = ""
    demand: int = 0

    @property
    def sku(self) -> str:
        return f"{self.code}@{credits_of(self.cents)}"

    @property
    def is_service(self) -> bool:
        """Whether the code stands for postage, a fee, a discount and the like: codes of goods are mostly digits."""
        return sum(character.isdigit() for character in self.code) < _DIGITS_OF_GOODS


@dataclass(frozen=True, slots=True)
class Invoice:
    """An order to be placed: product numbers (indexes into `Plan.products`) and units, line by line."""

    number: str
    customer: str
    products: "array[int]"
    pieces: "array[int]"
    cents: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan for the whole file. `spend` is the total of each customer's accepted invoices."""

    digest: str
    products: Sequence[Product]
    invoices: Sequence[Invoice]
    spend: dict[str, int]
    lines_read: int
    invoices_read: int
    skipped_lines: Counter[LineReason]
    skipped_invoices: Counter[InvoiceReason]

    @property
    def tag(self) -> str:
        """Identifies the data set in addresses and keys, so that importing the same content again finds what exists."""
        return self.digest[:12]


@dataclass(slots=True)
class _Draft:
    customer: str | None = None
    products: "array[int]" = field(default_factory=lambda: array("q"))
    pieces: "array[int]" = field(default_factory=lambda: array("q"))


class Planner:
    """Takes lines in the order of the file, then makes the plan. An invoice's lines need not be adjacent."""

    def __init__(self) -> None:
        self._drafts: dict[str, _Draft] = {}
        self._numbers: dict[tuple[str, int], int] = {}
        self._products: list[Product] = []
        self._names: dict[str, Counter[str]] = {}
        self._lines_read = 0
        self._skipped: Counter[LineReason] = Counter()

    def add(self, line: Line | BadLine) -> None:
        self._lines_read += 1
        draft = None if line.invoice is None else self._drafts.setdefault(line.invoice, _Draft())
        reason = line.reason if isinstance(line, BadLine) else _reason_to_skip(line)
        if reason is None:
            assert isinstance(line, Line)
            assert draft is not None
            reason = self._take(line, draft)
        if reason is not None:
            self._skipped[reason] += 1

    def finish(self, digest: str) -> Plan:
        """The plan for everything added. `digest` identifies the file's content."""
        for product in self._products:
            product.name = _most_frequent(self._names[product.code]) or product.code
        invoices: list[Invoice] = []
        spend: Counter[str] = Counter()
        skipped: Counter[InvoiceReason] = Counter()
        moved = 0
        for number, draft in self._drafts.items():
            cents = self._total(draft)
            because = self._reason_to_skip(number, draft, moved + cents)
            if because is not None:
                skipped[because] += 1
                self._skip_lines(because, len(draft.products))
                continue
            for wanted, pieces in zip(draft.products, draft.pieces, strict=True):
                self._products[wanted].demand += pieces
            invoices.append(Invoice(number, draft.customer or GUEST, draft.products, draft.pieces, cents))
            spend[invoices[-1].customer] += cents
            moved += cents
        plan = Plan(
            digest=digest,
            products=self._products,
            invoices=invoices,
            spend=dict(spend),
            lines_read=self._lines_read,
            invoices_read=len(self._drafts),
            skipped_lines=self._skipped,
            skipped_invoices=skipped,
        )
        _assert_nothing_dropped(plan)
        return plan

    def _take(self, line: Line, draft: _Draft) -> LineReason | None:
        code = _clean(line.code)
        cents = int(line.price * 100)
        customer = GUEST if line.customer is None else line.customer
        if not code or len(Product(code, cents).sku) > _LONGEST_SKU:
            return LineReason.malformed
        if draft.customer is not None and draft.customer != customer:
            return LineReason.other_customer_in_invoice
        draft.customer = customer
        number = self._numbers.setdefault((code, cents), len(self._products))
        if number == len(self._products):
            self._products.append(Product(code, cents))
        self._names.setdefault(code, Counter())[_clean(line.description)[:_LONGEST_NAME]] += 1
        draft.products.append(number)
        draft.pieces.append(line.quantity)
        return None

    def _total(self, draft: _Draft) -> int:
        return sum(
            self._products[product].cents * pieces for product, pieces in zip(draft.products, draft.pieces, strict=True)
        )

    def _reason_to_skip(self, number: str, draft: _Draft, moved: int) -> InvoiceReason | None:
        if _is_cancelled(number):
            return InvoiceReason.cancelled
        if _is_adjustment(number):
            return InvoiceReason.adjustment
        if not draft.products:
            return InvoiceReason.no_sellable_line
        if len(draft.products) > MAX_ITEMS:
            return InvoiceReason.too_many_lines
        needed: Counter[int] = Counter()
        for product, pieces in zip(draft.products, draft.pieces, strict=True):
            needed[product] += pieces
        # Everything ends up on the seller's account, which reaches its limit first.
        if moved > _MAX_CENTS or any(self._products[p].demand + pieces > MAX_STOCK for p, pieces in needed.items()):
            return InvoiceReason.amounts_too_large
        return None

    def _skip_lines(self, because: InvoiceReason, lines: int) -> None:
        if lines:
            self._skipped[REASON_OF_LINES[because]] += lines


REASON_OF_LINES = {
    InvoiceReason.too_many_lines: LineReason.invoice_has_too_many_lines,
    InvoiceReason.amounts_too_large: LineReason.invoice_amounts_too_large,
    InvoiceReason.beyond_limit: LineReason.invoice_beyond_limit,
    InvoiceReason.refused_by_service: LineReason.invoice_refused_by_service,
}
"""The reason under which the sellable lines of a skipped invoice are counted."""


def make_plan(lines: Iterable[Line | BadLine]) -> Planner:
    """A planner that has taken all lines."""
    planner = Planner()
    for line in lines:
        planner.add(line)
    return planner


def credits_of(cents: int) -> str:
    """The amount in the API's format: `2.55`."""
    return f"{cents // 100}.{cents % 100:02d}"


def _reason_to_skip(line: Line) -> LineReason | None:
    if _is_cancelled(line.invoice):
        return LineReason.cancelled_invoice
    if _is_adjustment(line.invoice):
        return LineReason.adjustment
    if line.quantity <= 0:
        return LineReason.quantity_not_positive
    if line.quantity > MAX_QUANTITY:
        return LineReason.quantity_too_large
    if line.price < 0:
        return LineReason.price_negative
    if line.price == 0:
        return LineReason.price_zero
    # Not as a Decimal: its products are rounded to 28 digits.
    if (Fraction(line.price) * 100).denominator != 1:
        return LineReason.price_not_in_cents
    return None


def _is_cancelled(invoice: str) -> bool:
    return invoice[0] in "Cc"


def _is_adjustment(invoice: str) -> bool:
    return invoice[0] in "Aa"


def _clean(text: str) -> str:
    """The text without control and unassigned characters, and with single spaces."""
    printable = (" " if unicodedata.category(character)[0] == "C" else character for character in text)
    return " ".join("".join(printable).split())


def _most_frequent(names: Counter[str]) -> str | None:
    written = [(name, times) for name, times in names.most_common() if name]
    return written[0][0] if written else None


def _assert_nothing_dropped(plan: Plan) -> None:
    in_orders = sum(len(invoice.products) for invoice in plan.invoices)
    assert plan.lines_read == in_orders + plan.skipped_lines.total(), "a line was neither planned nor counted"
    skipped = plan.skipped_invoices.total()
    assert plan.invoices_read == len(plan.invoices) + skipped, "an invoice was neither planned nor counted"
    assert sum(plan.spend.values()) == sum(invoice.cents for invoice in plan.invoices)
    assert all(product.cents > 0 for product in plan.products)
