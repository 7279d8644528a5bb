"""Print docs/reference/roles.md: what each role may do, and which scope each route needs, as the code declares it."""

import sys
from collections import defaultdict
from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from services.api.declared import DeclaredRoute
from services.api.rights import scope_of
from services.app import create_app
from services.settings import Environment, Settings
from services.users.rights import SCOPES, SELLING, Role, Scope

HEAD = """\
# Roles and scopes

This page is generated: change `services/users/rights.py` or the declaration of a route, then run
`.venv/bin/python .ci/roles_page.py > docs/reference/roles.md`.

Each user has a role, and each role has scopes ([give a role](../how-to/give-roles.md)). Without the scope of its route,
a request is answered with 403 `forbidden`, and the header `WWW-Authenticate` names the scope. What callers may not see
is answered with 404, as if it did not exist; if they see it and may not do this to it, with 403.
"""

SELLING_NOTE = """\
\\* With `WAYBILL_CUSTOMERS_MAY_SELL=false`, only {roles} can use `catalog:write`.
"""


def routes(app: FastAPI) -> dict[Scope | None, list[str]]:
    """The routes that need each scope, and those that need none."""
    found: dict[Scope | None, list[str]] = defaultdict(list)
    for context in iter_route_contexts(app.routes):
        if isinstance(context.original_route, DeclaredRoute):
            scope = scope_of(context.original_route.endpoint)
            found[scope] += [f"`{method} {context.path}`" for method in sorted(context.methods or ())]
    return found


def page(app: FastAPI) -> Iterator[str]:
    """The lines of the page."""
    yield HEAD
    yield "## What each role may do\n"
    yield f"| scope | {' | '.join(Role)} |"
    yield "|---|" + ":-:|" * len(Role)
    for scope in Scope:
        has = [_mark(role, scope) if scope in SCOPES[role] else "" for role in Role]
        yield f"| `{scope.value}` | {' | '.join(has)} |"
    yield ""
    yield SELLING_NOTE.format(roles=" and ".join(f"{role.value}s" for role in Role if role in SELLING))
    yield "## What each scope is for\n"
    yield "| scope | what it allows | routes |"
    yield "|---|---|---|"
    found = routes(app)
    for scope in Scope:
        yield f"| `{scope.value}` | {scope.meaning} | {', '.join(found[scope])} |"
    yield ""
    yield "## What is open to everyone\n"
    yield "No token is needed. Products show more to callers who send one."
    yield "`/metrics` has its own token, `WAYBILL_METRICS_TOKEN`.\n"
    yield from (f"- {route}" for route in found[None])


def _mark(role: Role, scope: Scope) -> str:
    return "yes*" if scope is Scope.catalog_write and role not in SELLING else "yes"


if __name__ == "__main__":
    application = create_app(Settings(_env_file=None, environment=Environment.development))
    sys.stdout.write("\n".join(page(application)) + "\n")
