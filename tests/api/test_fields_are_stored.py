"""What a client sends is stored and shown: each field of each request body, a new one included.

A field that a schema accepts and a statement forgets would be lost in silence. Values are made from the types of the
fields, so that a new field is tried without a word here. One that is not stored under its own name is explained here.
"""

import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from inspect import isclass
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

import services
from services.catalog import schemas as catalog
from services.credits import schemas as credits_
from services.fields import RequestBody, new_id, now
from services.models import metadata
from services.operations.bulk import schemas as bulk
from services.operations.consumers import schemas as consumers
from services.operations.outbox import schemas as outbox
from services.orders import schemas as orders
from services.orders.search import schemas as search
from services.users import schemas as users
from services.users.keys import schemas as keys
from services.users.registration import schemas as registration
from services.users.resets import schemas as resets
from services.users.totp import schemas as totp
from tests.api import sending
from tests.api.client import Api


@dataclass(frozen=True)
class Case:
    """How a body is sent, and in which tables its fields are columns."""

    tables: Sequence[str]
    send: Callable[[Api, sending.Fill], Awaitable[sending.Sent]]
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Fields that are not stored as they are sent, with the reason."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Fields whose column, and whose field of the reply, has another name."""
    unseen: frozenset[str] = frozenset()
    """Fields that no reply shows."""


def bodies() -> list[type[RequestBody]]:
    """Every request body of the services. Those that only others are made of are private or have no field."""
    for module in pkgutil.walk_packages(services.__path__, "services."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = {body for body in below(RequestBody) if body.__module__.startswith("services.")}
    return sorted(
        (body for body in found if body.model_fields and not body.__name__.startswith("_")),
        key=lambda body: body.__name__,
    )


def below(base: type[RequestBody]) -> Iterator[type[RequestBody]]:
    for one in base.__subclasses__():
        yield one
        yield from below(one)


def candidates(annotation: Any) -> Iterator[Any]:
    """Values of many kinds, as JSON has them. Times come before numbers: a time may be given as a number, too."""
    yield from ("given", (now() + timedelta(hours=1)).isoformat(), "2031-02-03", "7.25", 3, True, False)
    yield from (str(new_id()), "somebody@example.com", ["given"], {"given": "7.25"})
    for kind in (annotation, *get_args(annotation)):
        if isclass(kind) and issubclass(kind, Enum):
            yield from (member.value for member in kind)


def made_up(body: type[RequestBody], name: str, before: Mapping[str, Any]) -> Any:
    """A value that the field accepts, which is neither its default nor what was there before."""
    one = body.model_fields[name]
    accepted: TypeAdapter[Any] = TypeAdapter(one.rebuild_annotation())
    for value in candidates(one.annotation):
        try:
            parsed = accepted.validate_python(value)
        except ValidationError:
            continue
        if parsed != one.get_default(call_default_factory=True) and parsed != before.get(name, ...):
            return value
    pytest.fail(f"no value is known that {body.__name__}.{name} accepts: add one to `candidates`")


PASSWORD = {"password": "its hash is stored, as hashed_password"}
OTP = {"otp": "is compared with the codes of the secret"}
CURRENT = {"current_password": "is compared with the hash"}
OVERLAP = {"overlap": "is added to the time, as retires_at of the replaced key"}
RECIPIENT = {"to_user_id": "names the recipient; the recipient's account is stored"}
DRY_RUN = {"dry_run": "asks to store nothing"}
SELECTS = "selects dead letters"
FILTERS = "is stored in the filter"
FINDS = "says which orders to find"

CASES: dict[type[RequestBody], Case] = {
    users.UserCreate: Case(["users"], sending.register, PASSWORD),
    users.UserUpdate: Case(["users"], sending.change_self, PASSWORD | CURRENT),
    users.Confirmation: Case(["users"], sending.delete_self, CURRENT),
    resets.ResetRequest: Case(["mails"], sending.ask_for_reset, {"email": "names the user; the user's id is stored"}),
    resets.Reset: Case(["users"], sending.reset, PASSWORD | {"token": "is deleted"}),
    keys.ApiKeyCreate: Case(["api_keys"], sending.make_key, CURRENT),
    keys.Rotation: Case(["api_keys"], sending.rotate_key, CURRENT | OVERLAP),
    keys.OwnRotation: Case(["api_keys"], sending.rotate_own_key, OVERLAP),
    registration.EmailConfirmation: Case(["users"], sending.confirm_email, PASSWORD | {"token": "is deleted"}),
    totp.TotpStart: Case(["totp_secrets"], sending.start_totp, CURRENT),
    totp.TotpConfirm: Case(["users"], sending.confirm_totp, OTP),
    totp.TotpProof: Case(["users"], sending.remove_totp, CURRENT | OTP),
    users.UserAdminUpdate: Case(["users"], sending.change_user),
    catalog.CategoryCreate: Case(["categories"], sending.create_category),
    catalog.CategoryUpdate: Case(["categories"], sending.change_category),
    catalog.ProductCreate: Case(["products"], sending.create_product, {"stock": "is stored as inventory.on_hand"}),
    catalog.ProductUpdate: Case(["products"], sending.change_product),
    catalog.ProductUpsert: Case(["products", "inventory"], sending.upsert, renamed={"stock": "on_hand"}),
    catalog.ProductsUpsert: Case(["products"], sending.upsert_some, {"products": "are rows of products"}),
    catalog.StockUpdate: Case(["inventory"], sending.change_stock, {"change": "is added to on_hand"}),
    orders.OrderCreate: Case(
        ["orders"],
        sending.place,
        {"items": "are rows of order_items", "on_insufficient_credits": "says what is to be done, not what is stored"},
    ),
    orders.OrderItemCreate: Case(["order_items"], sending.place_line),
    orders.OrderCancel: Case(["order_transitions"], sending.cancel),
    orders.RefundCreate: Case(["refunds"], sending.refund, {"lines": "are rows of refund_lines"}),
    orders.RefundLineCreate: Case(["refund_lines"], sending.refund_line),
    credits_.TopUpCreate: Case(
        ["transfers"], sending.top_up, {"user_id": "names the recipient; the recipient's account is stored"}
    ),
    credits_.TransferCreate: Case(["transfers"], sending.transfer, RECIPIENT | DRY_RUN),
    credits_.TransferItem: Case(
        ["transfers"], sending.transfer_item, RECIPIENT | {"linked": "says what is to be done, not what is stored"}
    ),
    credits_.TransferBatchCreate: Case(
        ["transfers"],
        sending.transfer_batch,
        DRY_RUN | {"mode": "says what is to be done, not what is stored", "transfers": "are rows of transfers"},
    ),
    credits_.HoldCreate: Case(["transfers"], sending.hold, RECIPIENT),
    credits_.HoldPost: Case(["transfers"], sending.post_hold, renamed={"amount": "posted_amount"}),
    credits_.ReversalCreate: Case(["transfers"], sending.reverse, renamed={"reason": "note"}),
    credits_.AdjustmentCreate: Case(
        ["adjustments"], sending.adjust, {"user_id": "names the user; the user's account is stored"}
    ),
    outbox.Because: Case(["outbox_actions"], sending.pause, unseen=frozenset({"reason"})),
    outbox.LimitChange: Case(["outbox_actions", "outbox_types"], sending.limit, unseen=frozenset({"reason"})),
    bulk.BulkActionCreate: Case(
        ["bulk_actions"],
        sending.start_bulk_action,
        dict.fromkeys(
            ("type", "aggregate", "fingerprint", "died_from", "died_before", "waits", "failure_reason"), FILTERS
        )
        | {"everything": "says that an empty filter is meant"},
    ),
    outbox.LettersWanted: Case(
        ["outbox_actions"],
        sending.discard,
        DRY_RUN
        | dict.fromkeys(("position", "event_id", "type", "aggregate", "fingerprint"), SELECTS)
        | dict.fromkeys(("died_from", "died_before", "failure_reason", "positions", "after", "limit"), SELECTS),
        unseen=frozenset({"reason"}),
    ),
    consumers.ConsumerReset: Case(
        ["outbox_actions"],
        sending.reset_consumer,
        {"to": "is a part of the action"},
        unseen=frozenset({"reason"}),
    ),
    search.OrderSearch: Case(
        ["orders"],
        sending.search_orders,
        dict.fromkeys(("buyer_email", "status", "placed_from", "placed_before", "limit", "cursor"), FINDS),
        unseen=frozenset({"buyer_id"}),
    ),
}


def test_every_request_body_is_tried() -> None:
    missing = [body.__name__ for body in bodies() if body not in CASES]
    assert missing == [], "say in CASES how they are sent, and where their rows are"


def stored(body: type[RequestBody], case: Case) -> dict[str, str]:
    """The column of each field that is stored."""
    unknown = (case.elsewhere.keys() | case.renamed.keys() | case.unseen) - body.model_fields.keys()
    assert not unknown, f"{body.__name__} has no {sorted(unknown)}"
    named = {name: case.renamed.get(name, name) for name in body.model_fields if name not in case.elsewhere}
    columns = {column.name for table in case.tables for column in metadata.tables[table].c}
    lost = sorted(f"{body.__name__}.{name}" for name, column in named.items() if column not in columns)
    assert lost == [], f"not a column of {case.tables}: say in `elsewhere` what becomes of it"
    return named


@pytest.mark.parametrize("body", CASES, ids=lambda body: body.__name__)
async def test_each_field_of_a_request_body_is_stored_and_shown(api: Api, body: type[RequestBody]) -> None:
    case = CASES[body]
    named = stored(body, case)

    def fill(before: Mapping[str, Any] | None = None, /, **given: Any) -> dict[str, Any]:
        return {name: made_up(body, name, before or {}) for name in named if name not in given} | given

    sent = await case.send(api, fill)

    parsed = body.model_validate(sent.body)
    lost = {name: sent.row[column] for name, column in named.items() if sent.row[column] != getattr(parsed, name)}
    assert lost == {}, f"the row has this instead of what {body.__name__} was sent"
    told = parsed.model_dump(mode="json")
    for shown in sent.shown:
        hidden = {
            name: shown.get(column, "nothing")
            for name, column in named.items()
            if name not in case.unseen and shown.get(column, ...) != told[name]
        }
        assert hidden == {}, f"the reply shows this instead of what {body.__name__} was sent"
