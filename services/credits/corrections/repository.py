"""All SQL about adjustments."""

from uuid import UUID

from sqlalchemy.orm import contains_eager
from sqlmodel import col, select
from sqlmodel.sql.expression import SelectOfScalar

from services.credits.models import Account, Adjustment, AdjustmentState
from services.fields import Id, Instant
from services.query import EXACT, ORDERED, Filterable, Listing, PageQuery, Rows, Sortable
from services.sql import SqlAccess
from services.users.models import User


class AdjustmentRepository(SqlAccess):
    """Adjustments, with their accounts and users."""

    async def add(self, adjustment: Adjustment) -> None:
        self.session.add(adjustment)
        await self.session.flush()

    async def get(self, adjustment_id: UUID, *, lock: bool = False) -> Adjustment | None:
        """The adjustment, if there is one; `lock` locks the row until the transaction ends."""
        statement = _with_user().where(col(Adjustment.id) == adjustment_id)
        if lock:
            statement = statement.with_for_update(of=Adjustment, key_share=True)
        # Replace what the session has loaded: another transaction may have decided while this one waited for the lock.
        return (await self.session.exec(statement.execution_options(populate_existing=True))).one_or_none()

    async def page(self, wanted: PageQuery) -> Rows[Adjustment]:
        """Adjustments, newest first unless sorted otherwise."""
        return await ADJUSTMENTS.page(self.session, _with_user(), wanted)


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


def _with_user() -> SelectOfScalar[Adjustment]:
    return (
        select(Adjustment)
        .join(Account, col(Account.id) == col(Adjustment.account_id))
        .join(User, col(User.id) == col(Account.user_id))
        .options(contains_eager(Adjustment.account).contains_eager(Account.user))  # type: ignore[arg-type]
    )
