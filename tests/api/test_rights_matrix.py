"""Every route is tried as every role and without a token, with ids of objects that belong to other users.

What has to come of it follows from the scope that the route declares, the scopes of the role, and for what belongs to
users, from `RULES`. A new route is tried without a change here, unless its path has a parameter that `World.ids` does
not know.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import uuid4

import httpx2
import pytest
from fastapi.routing import iter_route_contexts

from benchmarks.sessions import session_of
from services.api.declared import DeclaredRoute
from services.api.rights import scope_of
from services.console.route import PageRoute
from services.errors import WrongCode
from services.users.models import User
from services.users.rights import SCOPES, Role, Scope
from tests.api.client import FRESH, Api
from tests.api.populated import populate
from tests.api.programs import make_key
from tests.factories import CONFIRMED, make_category, make_product, make_user


class Rule(NamedTuple):
    """Which scopes show what belongs to another user, and let a caller act on it. None: no scope does."""

    see: Scope | None
    act: Scope | None


RULES: Mapping[str, Rule] = {
    "/v1/orders/{order_id}": Rule(Scope.orders_read_all, Scope.orders_manage),
    # Only the buyer can.
    "/v1/orders/{order_id}/pay": Rule(Scope.orders_read_all, None),
    "/v1/transfers/{transfer_id}": Rule(Scope.credits_read_all, Scope.corrections_write),
    "/v1/sessions/{session_id}": Rule(None, None),
    "/v1/api-keys/{key_id}": Rule(None, None),
    # Everyone sees a product, until it is archived.
    "/v1/products/{product_id}": Rule(Scope.catalog_write, Scope.catalog_manage),
    "/v1/products/{product_id}/restore": Rule(Scope.catalog_manage, Scope.catalog_manage),
}
"""By the beginning of the path; the longest one counts. What is not listed is not any user's own: the scope decides."""

ENDS_THE_CALLER = {
    ("DELETE", "/v1/users/me"),
    ("DELETE", "/v1/users/me/personal-data"),
    ("DELETE", "/v1/sessions"),
    ("DELETE", "/v1/sessions/current"),
}
"""Sent as a user of their own."""

_CONFIRMED = {"current_password": "the password of every user"}
BODIES = {
    ("DELETE", "/v1/users/me"): _CONFIRMED,
    ("DELETE", "/v1/users/me/personal-data"): _CONFIRMED,
    ("DELETE", "/v1/users/{user_id}/personal-data"): _CONFIRMED,
}
"""Where a body that fits the schema is not enough."""

OF_OTHERS = ("order_id", "transfer_id", "adjustment_id", "request_id", "event_id", "action_id")
"""UUIDs in paths."""

LAST = [Role.admin, Role.operator]
"""They change what others would find."""


class Route(NamedTuple):
    method: str
    path: str
    scope: Scope | None

    @property
    def rule(self) -> Rule | None:
        found = [path for path in RULES if self.path.startswith(path)]
        return RULES[max(found, key=len)] if found else None


@dataclass
class World:
    """What belongs to others, by the names of parameters: an id that exists, and one like it that does not."""

    api: Api
    ids: dict[str, tuple[Any, Any]]
    archived: int
    callers: dict[Role, User]
    document: dict[str, Any]
    wrong: list[str] = field(default_factory=list)

    def path(self, route: Route, which: int) -> tuple[str, str]:
        """The path with ids filled in, and the last of them."""
        path, last = route.path, "nothing"
        for name, values in self.ids.items():
            if f"{{{name}}}" in path:
                value = values[which]
                if route.path == "/v1/products/{product_id}/restore" and which == 0:
                    value = self.archived
                path, last = path.replace(f"{{{name}}}", str(value)), str(value)
        assert "{" not in path, f"{route.path}: add an id of another user for this parameter"
        return path, last

    async def send(self, route: Route, by: User | None, which: int = 0) -> httpx2.Response:
        path, _ = self.path(route, which)
        body = BODIES.get(route[:2], self.body(route))
        more = {} if body is None else {"json": body}
        key = FRESH if route.method == "POST" else None
        headers = {"X-Request-Id": "matrix"}
        return await self.api.request(route.method, path, by=by, key=key, version=1, headers=headers, **more)

    def body(self, route: Route) -> Any:
        """A body that fits the schema; None if the route takes none."""
        operation = self.document["paths"].get(route.path, {}).get(route.method.lower(), {})
        content = operation.get("requestBody", {}).get("content", {})
        return self.sample(content["application/json"]["schema"]) if "application/json" in content else None

    def sample(self, schema: dict[str, Any]) -> Any:
        if "$ref" in schema:
            return self.sample(self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return self.sample(schema[several][0])
        match schema.get("type"):
            case "object":
                values = {name: self.sample(schema["properties"][name]) for name in schema.get("required", ())}
                return values | {name: value for name, value in CONFIRMED.items() if name in values}
            case "array":
                return [self.sample(schema["items"])]
            case "integer":
                return max(1, schema.get("minimum", 1))
            case "boolean":
                return False
        if "enum" in schema:
            return schema["enum"][0]
        formats = {"email": "someone@example.com", "uuid": str(uuid4()), "date-time": "2026-12-20T00:00:00Z"}
        text: str = formats.get(schema.get("format", ""), "1.00" if "pattern" in schema else "some text, long enough")
        return text

    def expect(self, right: object, route: Route, role: Role | None, reply: httpx2.Response, why: str) -> None:
        if not right:
            by = "anonymous" if role is None else role.value
            self.wrong.append(f"{route.method} {route.path} as {by}: {reply.status_code}, {why}: {reply.text[:200]}")


@pytest.fixture
async def world(api: Api) -> World:
    owner, other = await make_user(api.database, credits="100000"), await make_user(api.database, credits="1000")
    product = await make_product(api.database, seller=other)
    archived = await make_product(api.database, seller=other)
    await api.delete(f"/v1/products/{archived.id}", by=other)
    known = await populate(api.database, owner, other)
    ids: dict[str, tuple[Any, Any]] = {
        "user_id": (owner.id, 2**40),
        "product_id": (product.id, 2**40),
        "category_id": ((await make_category(api.database)).id, 2**40),
        "session_id": (session_of(owner.id).session_id, uuid4()),
        "key_id": ((await make_key(api, owner))["id"], uuid4()),
        "name": ("docs.js", "unknown"),
        "fingerprint": ("abc", "unknown"),
        "event_type": ("order.placed", "order.unknown"),
        "consumer": ("orders-by-day", "unknown"),
        "job": ("audit", "unknown"),
        "worker_id": (uuid4(), uuid4()),
        "position": (known["position"][0], 2**40),
    }
    ids |= {name: (known[name][0], uuid4()) for name in OF_OTHERS}
    callers = {role: await make_user(api.database, role=role, credits="10") for role in Role}
    return World(api, ids, archived.id, callers, api.app.openapi())


def routes(api: Api) -> list[Route]:
    """All routes; those that delete come last."""
    found = [
        Route(method, str(context.path), scope_of(context.original_route.endpoint))
        for context in iter_route_contexts(api.app.routes)
        if isinstance(context.original_route, DeclaredRoute)
        # The console's callers are known by a cookie: tests/api/console has a matrix of its pages.
        and not isinstance(context.original_route, PageRoute)
        for method in context.methods or ()
    ]
    return sorted(found, key=lambda route: route.method == "DELETE")


MOVING = {"content-length", "date", "ratelimit"}
"""Headers that differ between two replies anyway."""


def alike(world: World, route: Route, first: httpx2.Response, unknown: httpx2.Response) -> bool:
    """Whether the reply about another user's object is that about an object that does not exist."""
    shown = []
    for which, reply in enumerate((first, unknown)):
        headers = {name: value for name, value in reply.headers.items() if name not in MOVING}
        shown.append((reply.status_code, headers, re.sub(rf"\b{world.path(route, which)[1]}\b", "ID", reply.text)))
    return shown[0] == shown[1]


async def check_role(world: World, route: Route, role: Role) -> None:
    by = world.callers[role]
    if route[:2] in ENDS_THE_CALLER:
        by = await make_user(world.api.database, role=role)
    reply = await world.send(route, by)
    status, rule = reply.status_code, route.rule
    if route.scope is None:
        world.expect(status not in (401, 403), route, role, reply, "but it is public")
        return
    if route.scope not in SCOPES[role]:
        named = f'Bearer error="insufficient_scope", scope="{route.scope.value}"'
        right = status == 403 and reply.headers.get("www-authenticate") == named
        world.expect(right, route, role, reply, f"without {route.scope.value}")
        unknown = await world.send(route, by, 1)
        world.expect(alike(world, route, reply, unknown), route, role, unknown, "differs for an unknown id")
        return
    if rule is None:
        # The code of an authenticator app cannot be made up here.
        let_in = status not in (401, 403) or reply.json()["code"] == WrongCode.code
        world.expect(let_in, route, role, reply, f"with {route.scope.value}")
        return
    sees, acts = rule.see in SCOPES[role], rule.act in SCOPES[role]
    if not sees:
        world.expect(status == 404, route, role, reply, "but it belongs to someone else")
        unknown = await world.send(route, by, 1)
        world.expect(alike(world, route, reply, unknown), route, role, unknown, "differs for an unknown id")
    elif route.method == "GET":
        world.expect(status == 200, route, role, reply, f"with {rule.see}")
    elif acts:
        world.expect(status not in (401, 403, 404, 422), route, role, reply, f"with {rule.act}")
    else:
        right = status == 403 and "www-authenticate" not in reply.headers
        world.expect(right, route, role, reply, f"sees it, but may not do this to it without {rule.act}")


async def check_anonymous(world: World, route: Route) -> None:
    reply = await world.send(route, None)
    if route.scope is None:
        world.expect(reply.status_code not in (401, 403), route, None, reply, "but it is public")
        return
    unknown = await world.send(route, None, 1)
    right = reply.status_code == 401 and reply.headers.get("www-authenticate") == "Bearer"
    world.expect(right, route, None, reply, "without a token")
    world.expect(alike(world, route, reply, unknown), route, None, unknown, "differs for an unknown id")


async def test_every_route_as_every_role_with_what_belongs_to_others(world: World) -> None:
    every = routes(world.api)
    assert len(every) > 80
    assert {route.scope for route in every} >= {Scope.orders_read, Scope.corrections_write, None}
    for route in every:
        await check_anonymous(world, route)
    before, after = await world.api.everything(), {}
    quiet = [Role.auditor, Role.support, Role.customer, Role.seller]
    assert {*quiet, *LAST} == set(Role)
    for role in quiet:
        for route in every:
            await check_role(world, route, role)
        if role is Role.auditor:
            after = await world.api.everything()
    for role in LAST:
        for route in every:
            await check_role(world, route, role)
    assert not world.wrong, "\n" + "\n".join(world.wrong)
    # An auditor changes nothing else than by what is public, such as a sign-in, and what concerns themselves.
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {
        "accounts",
        "api_keys",
        "events",
        "failed_attempts",
        "mails",
        "sessions",
        "totp_secrets",
        "users",
    }
