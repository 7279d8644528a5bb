"""The first page: how everything goes."""

from fastapi import Request, Response

from services.api.dependencies import Work
from services.api.rights import needs
from services.console.rendering import render
from services.console.route import page_router
from services.console.staff import Staff
from services.operations import service
from services.users.rights import Scope

router = page_router()


@router.get("/overview")
@needs(Scope.operations_read)
async def show_overview(request: Request, _: Staff, uow: Work) -> Response:
    """How everything goes, and what needs attention."""
    return render(request, "overview.html", {"backlog": await service.backlog(uow)})
