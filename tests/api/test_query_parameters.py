"""A query parameter that an operation does not have is refused: as a typo, it would silently change the reply."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.client import FRESH, Api, assert_problem
from tests.api.test_body_limits import routes_of, target
from tests.factories import make_operator, make_user

PAGES = ("GET /docs", "GET /redoc", "GET /assets/{name}", "GET /openapi.json", "GET /")


def operations(api: Api) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Each operation as its method and path, with its query parameters."""
    paths: dict[str, Any] = api.app.openapi()["paths"]
    for path, methods in paths.items():
        for method, operation in methods.items():
            parameters = [one for one in operation.get("parameters", []) if one["in"] == "query"]
            yield f"{method.upper()} {path}", parameters


async def test_every_operation_refuses_an_unknown_parameter_and_says_which_it_has(api: Api) -> None:
    operator = await make_operator(api.database)
    before = await api.everything()
    tried = 0
    for name, parameters in operations(api):
        known = sorted(one["name"] for one in parameters)
        method, path = target(name)
        reply = await api.request(method, f"{path}?surely_unknown=1", by=operator, key=FRESH, version=1)
        problem = assert_problem(reply, 400, "bad_query")
        assert f"This operation has {', '.join(known) or 'none'}." in problem["detail"], name
        assert [fault["pointer"] for fault in problem["errors"]] == ["query/surely_unknown"]
        tried += 1
    # The pages about the API, and those of the console, are not described by it.
    described = [name for name in routes_of(api) if name not in PAGES and " /console" not in name]
    assert tried == len(described) > 60
    assert await api.everything() == before


async def test_every_parameter_that_is_not_a_list_is_refused_if_it_is_repeated(api: Api) -> None:
    operator = await make_operator(api.database)
    tried = set()
    for name, parameters in operations(api):
        for one in parameters:
            kinds = [one["schema"], *one["schema"].get("anyOf", ())]
            method, path = target(name)
            reply = await api.request(method, f"{path}?{one['name']}=1&{one['name']}=1", by=operator)
            if any(kind.get("type") == "array" for kind in kinds):
                assert "more than once" not in reply.text
            else:
                problem = assert_problem(reply, 400, "bad_query")
                assert f"'{one['name']}' is given more than once" in problem["detail"], name
                tried.add(one["name"])
    assert tried >= {"limit", "cursor", "sort", "q", "as", "count"}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("limt=1", "(did you mean 'limit'?)"),
        ("Limit=1", "(did you mean 'limit'?)"),
        ("filters=id:eq:1", "(did you mean 'filter'?)"),
        ("status=cancelled", "Filters are written filter=field:operator:value."),
        ("%00=1", "is unknown"),
        ("=1", "is unknown"),
        ("limit", "should be"),
    ],
)
async def test_a_typo_is_answered_with_what_was_probably_meant(api: Api, query: str, said: str) -> None:
    user = await make_user(api.database)
    reply = await api.get(f"/v1/orders?{query}", by=user)
    assert reply.status_code in (400, 422)
    assert said in reply.text


async def test_a_query_without_parameters_is_no_query(api: Api) -> None:
    user = await make_user(api.database)
    for query in ("?", "?&", "?&&"):
        assert (await api.get(f"/v1/orders{query}", by=user)).status_code == 200
        assert (await api.client.get(f"/healthz{query}")).status_code == 200


async def test_a_flood_of_parameters_is_refused_with_a_short_reply(api: Api) -> None:
    user = await make_user(api.database)
    for query in ("&".join(f"a{n}=1" for n in range(99)), "a&" * 20_000, "x" * 40_000, "limit=1&" * 90):
        reply = await api.get(f"/v1/orders?{query}", by=user)
        assert (reply.status_code, reply.json()["code"]) == (400, "bad_query")
        assert len(reply.content) < 16_384
        assert len(reply.json()["errors"]) <= 20


async def test_the_probes_take_no_parameters(api: Api) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/internal/scaling"):
        assert_problem(await api.client.get(f"{path}?x=1"), 400, "bad_query")
        assert (await api.client.get(path)).status_code == 200
        head = await api.client.head(f"{path}?x=1")
        assert (head.status_code, head.content) == (400, b"")
