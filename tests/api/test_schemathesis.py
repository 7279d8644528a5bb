"""Generated requests, good and bad, to every operation of the OpenAPI document.

None may end in a 5xx, and each reply must be documented, with its status, type and shape. The
application runs in this process, with its lifespan, on Schemathesis' own event loop.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis.strategies import integers, none, one_of
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.python.asgi import shutdown_lifespans
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from benchmarks.sessions import session_of
from services.api.tokens import Tokens
from services.app import create_app
from services.database import open_database
from services.settings import Settings
from services.users.models import User
from tests.api.populated import EACH, populate
from tests.factories import make_operator, make_order, make_product, make_user

EXAMPLES = 60
"""For each operation, as each caller."""

LOCKING_OUT = {"DELETE /v1/sessions", "DELETE /v1/sessions/current", "DELETE /v1/users/me"}

ON_WHAT_THERE_IS = {
    "POST /v1/orders/{order_id}/cancel",
    "POST /v1/transfers/{transfer_id}/post",
    "POST /v1/transfers/{transfer_id}/reverse",
    "POST /v1/adjustments/{adjustment_id}/approve",
    "POST /v1/operations/deferred/{event_id}/cancel",
    "GET /v1/operations/why",
    "GET /v1/operations/audit",
}
"""Operations that must have succeeded at least once; otherwise they were hardly tested."""

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@dataclass(frozen=True)
class World:
    """The document of a running application, its callers, and existing values by the names of parameters."""

    schema: BaseSchema
    tokens: dict[str, str]
    known: dict[str, Sequence[Any]]


@pytest.fixture
def world(settings: Settings) -> Iterator[World]:
    async def fill() -> tuple[dict[str, User], dict[str, Sequence[Any]]]:
        async with open_database(settings, "test") as database:
            customer = await make_user(database, credits="1000000")
            product = await make_product(database)
            await make_product(database, seller=customer)
            await make_order(database, buyer=customer, lines=[(product, 1)])
            known = await populate(database, customer, await make_user(database, credits="1000"))
            return {"customer": customer, "operator": await make_operator(database)}, known

    users, known = asyncio.run(fill())
    tokens = Tokens.from_settings(settings)
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(settings))
    try:
        yield World(schema, {name: tokens.make(session_of(user.id)) for name, user in users.items()}, known)
    finally:
        shutdown_lifespans()


def try_out(
    operation: APIOperation[Any, Any, Any, Any], headers: dict[str, str], known: dict[str, Sequence[Any]]
) -> set[int]:
    """Send generated requests, half of them valid and half of them not; return the statuses of the replies."""
    statuses = set()
    strategies = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

    @given(case=one_of(strategies), prepared=none() | integers(0, 2 * EACH - 1))
    @hypothesis_settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Case[Any], prepared: int | None) -> None:
        more: dict[str, str] = {}
        if prepared is not None:
            # Half of them with values that are hardly ever generated, so that more of them reach the service.
            more = {"Idempotency-Key": str(uuid4()), "If-Match": '"1"'}
            for given_ones in (case.path_parameters, case.query):
                for name in given_ones.keys() & known.keys():
                    given_ones[name] = str(known[name][prepared % len(known[name])])
        statuses.add(case.call_and_validate(headers={**headers, **more}, checks=CHECKS).status_code)

    check()
    return statuses


@pytest.mark.parametrize("caller", ["customer", "operator"])
def test_no_generated_request_ends_in_a_5xx_or_in_an_undocumented_reply(world: World, caller: str) -> None:
    headers = {"Authorization": f"Bearer {world.tokens[caller]}"}
    operations = [result.ok() for result in world.schema.get_all_operations() if isinstance(result, Ok)]
    # A caller who locks themselves out makes every later reply a 401.
    operations.sort(key=lambda operation: operation.label in LOCKING_OUT)
    statuses = {operation.label: try_out(operation, headers, world.known) for operation in operations}

    assert len(statuses) > 25
    taken = {label for label, seen in statuses.items() if any(status < 300 for status in seen)}
    refused = {label for label, seen in statuses.items() if any(400 <= status < 500 for status in seen)}
    assert len(taken) >= 10, statuses
    assert len(refused) >= 20, statuses
    if caller == "operator":
        assert taken >= ON_WHAT_THERE_IS, statuses
