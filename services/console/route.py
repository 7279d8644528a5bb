"""The route of pages: as the API's, with a cookie instead of a token, and errors that are pages."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import Field

from services.api.bodies import read_whole
from services.api.checked import Handle
from services.api.transaction import TransactionRoute
from services.console.errors import as_page
from services.console.navigation import ROOT
from services.console.staff import signed_in_staff
from services.console.tokens import SESSION, check_form_token, check_origin
from services.fields import Schema

HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])

_COOKIE = "form_cookie"


class PageRoute(TransactionRoute):
    """A route whose caller is known by the session's cookie.

    A request that is not only a read is refused (403) unless a form of this session's own pages makes it: see
    `check_origin` and `check_form_token`. Requests are limited by the address of the client.
    """

    checking = staticmethod(signed_in_staff)
    limited_by_address = True

    def get_route_handler(self) -> Handle:
        handle = super().get_route_handler()

        async def handle_as_page(request: Request) -> Response:
            return as_page(request, await handle(request))

        return handle_as_page

    def handler(self, handle: Handle) -> Handle:
        handle_checked = super().handler(handle)
        if {"GET", "HEAD"}.issuperset(self.methods or ()):
            return handle_checked
        cookie = getattr(self.endpoint, _COOKIE, SESSION)

        async def handle_form(request: Request) -> Response:
            check_origin(request)
            # The form is parsed from it, and the handler may need it, too.
            await read_whole(request)
            await check_form_token(request, cookie)
            return await handle_checked(request)

        return handle_form


def with_cookie(name: str) -> Callable[[HandlerT], HandlerT]:
    """Mark a handler: the token of its form goes with this cookie, and not with the session's."""

    def mark(handler: HandlerT) -> HandlerT:
        setattr(handler, _COOKIE, name)
        return handler

    return mark


class PageForm(Schema):
    """The fields of a form. Each one has the token, which the route has checked before."""

    form_token: str = Field(default="", repr=False)


def page_router() -> APIRouter:
    """A router for pages. Their paths begin with the console's."""
    return APIRouter(prefix=ROOT, route_class=PageRoute, include_in_schema=False)
