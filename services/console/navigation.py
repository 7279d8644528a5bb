"""The pages that the console links to, in this order, and the scope that each of them needs."""

from dataclasses import dataclass

from services.users.repository import SignedIn
from services.users.rights import Scope

ROOT = "/console"


@dataclass(frozen=True, slots=True)
class Page:
    """A page in the navigation. It is shown to those who have its scope, which its handler declares, too."""

    name: str
    path: str
    scope: Scope


PAGES: tuple[Page, ...] = (
    Page("Overview", f"{ROOT}/overview", Scope.operations_read),
    Page("Events", f"{ROOT}/events", Scope.operations_read),
    Page("Failures", f"{ROOT}/failures", Scope.operations_read),
)


def pages_for(staff: SignedIn) -> list[Page]:
    """The pages that this member of the staff may see."""
    return [page for page in PAGES if staff.may(page.scope)]
