"""Routes that check what a request may cost and contain, before anything is done for it."""

from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any, ClassVar, TypeAlias, get_origin

from fastapi import Request, Response, params
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from services.api.bodies import BodyLimit, JsonRequest, is_json, limit_of, parse, read_whole, too_many
from services.api.declared import DeclaredRoute
from services.api.problems import responses
from services.api.rate_classes import RateClass
from services.api.rights import scope_of
from services.api.state import api_state
from services.errors import BadQuery, Fault, Unauthenticated

Handle: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"

_MOST_PARAMETERS = 100
"""In a query: more than any route has a use for."""

_LONGEST_NAME = 64
"""Characters of an unknown name that is compared with the known ones."""


class CheckedRoute(DeclaredRoute):
    """A route that refuses what no handler should see.

    - Any request of a caller who has sent too many of its class (429); see `rate_class`.
    - A query parameter that the route does not have, or has only once (400). Elsewhere a typo would change the reply.
    - A body beyond the route's limit (413); see `body_limit`. It is not read further.
    - A body of another type, or without one (415). Browsers send other types to any site without asking it.
    - A body that is not JSON, or has a key twice (400); a form that has a field twice (400), unless that is a list.

    Handlers and the code that reads a body before FastAPI does get a request whose body is read and parsed.
    """

    limited_by_address: ClassVar[bool] = False
    """Whether requests count as those of the address, even if they carry a token."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        possible = (400,) if self.body_field is None else (400, 413, 415)
        self.responses = {**responses(*possible), **self.responses}

    def get_route_handler(self) -> Handle:
        check = _Check.of(self)
        handle = self.handler(super().get_route_handler())

        async def handle_checked(request: Request) -> Response:
            return await handle(await check(request))

        async def handle_in_turn(request: Request) -> Response:
            if self.is_short(request):
                return await handle_checked(request)
            return await api_state(request).run_queue.run(handle_checked(request))

        return handle_checked if self.rate_class is RateClass.internal else self._limited(handle_in_turn)

    def _limited(self, handle: Handle) -> Handle:
        """The same for callers who are within their limit."""
        kind = self.rate_class
        by_address = self.limited_by_address or scope_of(self.endpoint) is None

        async def handle_limited(request: Request) -> Response:
            limits = api_state(request).rate_limits
            credential = await limits.admit(request, kind, public=by_address)
            try:
                response = await handle(request)
            except Unauthenticated:
                if credential is not None:
                    limits.distrust(credential)
                raise
            if credential is not None and response.status_code == HTTPStatus.UNAUTHORIZED:
                limits.distrust(credential)
            return response

        return handle_limited

    def is_short(self, _: Request) -> bool:
        """Whether no step of this request is long, so that it need not take turns with others (`RunQueue`)."""
        return False

    def handler(self, handle: Handle) -> Handle:
        """What handles the requests that are not refused."""
        return handle


@dataclass(frozen=True, slots=True)
class _Check:
    """What a route checks."""

    known: frozenset[str]
    """The query parameters."""
    repeated: frozenset[str]
    """Those that may be given several times."""
    content_type: str | None
    """None if the route takes no body."""
    limit: BodyLimit
    lists: frozenset[str]
    """The fields of a form that may be given several times."""

    @classmethod
    def of(cls, route: APIRoute) -> "_Check":
        known = {one.alias: one.field_info.annotation for one in _query_parameters(route.dependant)}
        repeated = {name for name, kind in known.items() if get_origin(kind) in (list, tuple)}
        field = route.body_field
        content_type = None if field is None else FORM if isinstance(field.field_info, params.Form) else JSON
        return cls(
            frozenset(known), frozenset(repeated), content_type, limit_of(route.endpoint), _lists(route.dependant)
        )

    async def __call__(self, request: Request) -> Request:
        """The request to handle. Raises `BadQuery` or `HTTPException` if it is refused."""
        scope = request.scope
        if scope["query_string"]:
            self._check_query(request)
        # The middleware, which counts what arrives, has put it there.
        scope["state"]["limit_body"](self.limit.size)
        if self.content_type == JSON:
            return await self._with_json(request)
        if self.content_type == FORM and await self._has_body(request, FORM):
            if (await request.body()).count(b"&") >= self.limit.values:
                raise too_many(self.limit)
            _check_form(await request.form(), self.lists)
        return request

    async def _with_json(self, received: Request) -> Request:
        request = JsonRequest(received.scope, received.receive)
        if await self._has_body(request, JSON):
            request.parsed = parse(await request.body(), self.limit)
        return request

    async def _has_body(self, request: Request, wanted: str) -> bool:
        """Whether the request has a body, which has been read and is of the right type."""
        if not await read_whole(request):
            return False
        given = request.headers.get("content-type", "")
        if given != wanted and not (is_json(given) if wanted == JSON else _is_form(given)):
            what = f"not {given[:100]}" if given else "but it has no Content-Type"
            # RFC 9110, section 15.5.16.
            raise HTTPException(415, f"the body must be {wanted}, {what}", {"Accept": wanted})
        return True

    def _check_query(self, request: Request) -> None:
        if request.scope["query_string"].count(b"&") >= _MOST_PARAMETERS:
            raise BadQuery(f"the query has more than {_MOST_PARAMETERS} parameters")
        faults = []
        for name, number in Counter(name for name, _ in request.query_params.multi_items()).items():
            if name not in self.known:
                faults.append(Fault(f"is unknown{self._nearest(name)}", f"query/{name}"))
            elif number > 1 and name not in self.repeated:
                faults.append(Fault("is given more than once", f"query/{name}"))
        if faults:
            first = faults[0].pointer.removeprefix("query/")[:_LONGEST_NAME]
            raise BadQuery(f"the query parameter '{first}' {faults[0].detail}. {self._help()}", faults)

    def _nearest(self, name: str) -> str:
        found = get_close_matches(name, sorted(self.known), 1) if len(name) <= _LONGEST_NAME else ()
        return f" (did you mean '{found[0]}'?)" if found else ""

    def _help(self) -> str:
        known = f"This operation has {', '.join(sorted(self.known)) or 'none'}."
        return f"{known} Filters are written filter=field:operator:value." if "filter" in self.known else known


def _query_parameters(dependant: Dependant) -> Iterable[Any]:
    yield from dependant.query_params
    for one in dependant.dependencies:
        yield from _query_parameters(one)


def _is_form(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == FORM


def _lists(dependant: Dependant) -> frozenset[str]:
    """The fields of the form's model that are lists."""
    models = [one.field_info.annotation for one in dependant.body_params if isinstance(one.field_info, params.Form)]
    return frozenset(
        name
        for model in models
        if isinstance(model, type) and issubclass(model, BaseModel)
        for name, field in model.model_fields.items()
        if get_origin(field.annotation) is list
    )


def _check_form(form: FormData, lists: frozenset[str]) -> None:
    """RFC 6749, section 3.2: parameters must not be included more than once. Lists are, once for each element."""
    for name, number in Counter(name for name, _ in form.multi_items()).items():
        if number > 1 and name not in lists:
            raise HTTPException(400, f"the field '{name}' is given more than once")
