"""All SQL about adjustments."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement
from sqlalchemy.orm import contains_eager
from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from services.credits.models import Account, Adjustment, AdjustmentState
from services.fields import Id, Instant
from services.filters import EXACT, ORDERED, Filterable, Operator, made_then
from services.query import Listing, Sortable
from services.repository import Repository
from services.users.models import User
from services.users.repository import WITHOUT_PASSWORD


class AdjustmentRepository(Repository[Adjustment]):
    """Adjustments, with their accounts and users."""

    model = Adjustment

    def _select(self) -> SelectOfScalar[Adjustment]:
        return (
            select(Adjustment)
            .join(Account, col(Account.id) == col(Adjustment.account_id))
            .join(User, col(User.id) == col(Account.user_id))
            .options(
                contains_eager(Adjustment.account)  # type: ignore[arg-type]
                .contains_eager(Account.user)  # type: ignore[arg-type]
                .options(WITHOUT_PASSWORD)
            )
        )


def _of_user(_: Any, operator: Operator, values: Sequence[Any]) -> ColumnElement[bool] | None:
    if operator is not Operator.eq:
        return None
    account = select(col(Account.id)).where(col(Account.user_id) == values[0]).scalar_subquery()
    return col(Adjustment.account_id) == account


_USER_ID = select(col(Account.user_id)).where(col(Account.id) == col(Adjustment.account_id)).scalar_subquery()

_ID = Sortable(col(Adjustment.id), UUID)

ADJUSTMENTS = Listing[Adjustment](
    filters={
        "user_id": Filterable(_USER_ID, Id, EXACT, bounds=_of_user),
        "requested_by": Filterable(col(Adjustment.requested_by), Id, EXACT, indexed=frozenset({"id"})),
        "state": Filterable(col(Adjustment.state), AdjustmentState, EXACT, indexed=frozenset({"id"})),
        "created_at": Filterable(col(Adjustment.created_at), Instant, ORDERED, bounds=made_then),
    },
    sorts={"id": _ID},
    key=_ID,
    default="-id",
)
