"""All SQL about adjustments."""

from uuid import UUID

from sqlalchemy.orm import contains_eager
from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from services.credits.models import Account, Adjustment, AdjustmentState
from services.fields import Id, Instant
from services.query import EXACT, ORDERED, Filterable, Listing, Sortable
from services.repository import Repository
from services.users.models import User


class AdjustmentRepository(Repository[Adjustment]):
    """Adjustments, with their accounts and users."""

    model = Adjustment

    def _select(self) -> SelectOfScalar[Adjustment]:
        return (
            select(Adjustment)
            .join(Account, col(Account.id) == col(Adjustment.account_id))
            .join(User, col(User.id) == col(Account.user_id))
            .options(contains_eager(Adjustment.account).contains_eager(Account.user))  # type: ignore[arg-type]
        )


_ID = Sortable(col(Adjustment.id), UUID)

ADJUSTMENTS = Listing[Adjustment](
    filters={
        "state": Filterable(col(Adjustment.state), AdjustmentState, EXACT),
        "user_id": Filterable(col(Account.user_id), Id, EXACT),
        "requested_by": Filterable(col(Adjustment.requested_by), Id, EXACT),
        "created_at": Filterable(col(Adjustment.created_at), Instant, ORDERED),
    },
    sorts={"id": _ID},
    key=_ID,
    default="-id",
)
