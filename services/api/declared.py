"""Routes whose handlers declare who may call them, and with what they are limited. There is no other kind."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from services.api.dependencies import current_user, known_user
from services.api.problems import responses
from services.api.rate_classes import RateClass, class_of
from services.api.rights import scope_of


class DeclaredRoute(APIRoute):
    """A route whose handler declares the scope that its callers need, or that it is public.

    Raises `LookupError` for a handler that declares neither, or whose declaration nothing checks, and as `class_of`.
    """

    checking: ClassVar[Callable[..., Any]] = staticmethod(current_user)
    """The dependency that knows the caller, and checks that they have the scope."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
        scope = scope_of(endpoint)
        if scope is not None:
            more["responses"] = {**responses(401, 403), **(more.get("responses") or {})}
        self.rate_class: RateClass = class_of(endpoint, more.get("methods") or ("GET",))
        super().__init__(path, endpoint, **more)
        checked = self.takes(self.checking)
        if scope is not None and not checked:
            raise LookupError(f"{endpoint.__qualname__} needs the scope {scope.value}: it must take a CurrentUser")
        if scope is None and checked:
            raise LookupError(f"{endpoint.__qualname__} is @public, so it cannot take a CurrentUser")

    def takes(self, dependency: Callable[..., Any]) -> bool:
        """Whether the handler depends on this, directly or not."""
        return _takes(self.dependant, dependency)


def _takes(dependant: Dependant, dependency: Callable[..., Any]) -> bool:
    return any(one.call is dependency or _takes(one, dependency) for one in dependant.dependencies)


def describe_scopes(app: FastAPI, document: dict[str, Any]) -> None:
    """Let the OpenAPI document say which scope each operation needs, as its handler declares it."""
    for route, _, operation in operations(app, document):
        scope = scope_of(route.endpoint)
        if scope is None:
            if route.takes(known_user):
                operation["security"] = [{}, *operation["security"]]
        else:
            operation["security"] = [{name: [scope.value] for name in one} for one in operation["security"]]
            operation["description"] += f"\n\nNeeds the scope `{scope.value}`."


def describe_limits(app: FastAPI, document: dict[str, Any]) -> None:
    """Let the OpenAPI document say with which other operations each one is limited."""
    for route, _, operation in operations(app, document):
        if route.rate_class is not RateClass.internal:
            operation["description"] += f"\n\nRate limit: `{route.rate_class.value}`."


def operations(app: FastAPI, document: dict[str, Any]) -> Iterator[tuple[DeclaredRoute, str, dict[str, Any]]]:
    """The routes that the document describes, each with its methods and the operations that describe them."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, DeclaredRoute) and context.include_in_schema:
            for method in context.methods or ():
                yield route, method, document["paths"][context.path_format][method.lower()]
