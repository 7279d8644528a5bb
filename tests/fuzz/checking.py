"""Sends generated requests, and checks the replies."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis.strategies import integers, none, one_of, sampled_from
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.populated import EACH
from tests.documented import COMPARISON
from tests.fuzz.world import ANONYMOUS, World

ALWAYS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    allow_header_conformance,
]

CHECKS = [*ALWAYS, negative_data_rejection]
"""Not among them: that valid requests succeed. A valid request may name what does not exist."""

_PATIENCE = 600.0
"""Seconds to wait for a reply. That a request takes long on a busy machine is not a finding."""


@dataclass
class Tried:
    """What became of the requests to an operation."""

    label: str
    statuses: Counter[int] = field(default_factory=Counter)


def try_out(
    world: World,
    operation: APIOperation[Any, Any, Any, Any],
    callers: Sequence[str],
    examples: int,
    *,
    derandomize: bool = True,
) -> Tried:
    """Send this number of requests, half of them valid, as one caller after another. Raises what a check finds.

    `tests.documented` compares the replies as well, with the codes of problems: use it around this.
    """
    tried = Tried(operation.label)
    strategies = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]
    # An empty alternative says that the operation may be called without credentials, too.
    ways = operation.definition.raw.get("security")
    secured = bool(ways) and {} not in ways

    @given(case=one_of(strategies), prepared=none() | integers(0, 2 * EACH - 1), caller=sampled_from(callers))
    @hypothesis_settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=derandomize,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Case[Any], prepared: int | None, caller: str) -> None:
        more: dict[str, str] = {}
        if prepared is not None:
            # Half of them with values that are hardly ever generated, so that more of them reach the service.
            more = {"Idempotency-Key": str(uuid4()), "If-Match": '"1"'}
            for given_ones in (case.path_parameters, case.query):
                for name in given_ones.keys() & world.known.keys():
                    given_ones[name] = str(world.known[name][prepared % len(world.known[name])])
        reply = case.call(headers={**world.headers[caller], **more}, timeout=_PATIENCE)
        case.validate_response(reply, checks=CHECKS if _was_accepted(reply.status_code, case, prepared) else ALWAYS)
        tried.statuses[reply.status_code] += 1
        if secured and caller == ANONYMOUS:
            assert reply.status_code >= 400, f"{operation.label} answered {reply.status_code} to nobody"
        assert not (found := COMPARISON.take()), found

    check()
    return tried


def _was_accepted(status: int, case: Case[Any], prepared: int | None) -> bool:
    """Whether the request was accepted as it was generated: prepared values and headers replace what makes one bad."""
    replaced = prepared is not None or (case.meta is not None and case.meta.is_negative_at(ParameterLocation.HEADER))
    return status < 400 and not replaced
