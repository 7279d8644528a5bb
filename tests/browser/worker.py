"""`python -m tests.browser.worker`: the product's worker, which also processes ticks.

A tick fails for good as long as the table `causes` has a row.
"""

from collections.abc import Sequence

from sqlalchemy import text

import services.subscriptions
from services.outbox.events import Claimed, Unprocessable
from services.outbox.subscription import Subscription
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import Tick, TickHandler


def main() -> None:
    ticks = TickHandler()

    async def handle(uow: UnitOfWork, events: Sequence[Claimed[Tick]]) -> None:
        connection = await uow.session.connection()
        if (await connection.execute(text("SELECT count(*) FROM causes"))).scalar_one():
            raise Unprocessable("the carrier does not know this parcel")
        await ticks(uow, events)

    services.subscriptions.SUBSCRIPTIONS = (*services.subscriptions.SUBSCRIPTIONS, Subscription(Tick, handle))
    # Imported here, because it takes the handlers as they are at that time.
    from worker.__main__ import main as work

    work()


if __name__ == "__main__":
    main()
