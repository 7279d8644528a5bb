"""`python -m tests.faults.reports_worker WHEN`: the product's worker, which hangs in its first batch of reports.

WHEN is `read` (the batch was read, and nothing of it is in the analytics database yet), `stored` (it was committed
there, and the primary does not know it) or `effects` (its effects are there, and not committed). It writes a row into
`beginnings` in the primary before that.
"""

import asyncio
import os
import sys
from functools import partial
from typing import Any

import worker.context
from services.analytics import AnalyticsWork
from services.database import make_engine, make_session_factory
from services.reports.repository import ReportRepository
from services.settings import get_settings
from services.sql import Sql, Statement
from services.unit_of_work import UnitOfWork
from worker.follower import Follower

LEASE = 2.0


async def hang(*_: Any) -> Any:
    """Announce it over another connection, and wait to be killed."""
    async with UnitOfWork(make_session_factory(make_engine(get_settings(), "test"))) as other:
        await Sql.of(other.session).run(Statement("INSERT INTO beginnings VALUES (:pid)"), pid=os.getpid())
        await other.commit()
    await asyncio.sleep(3600)


def main(when: str) -> None:
    if when == "read":
        AnalyticsWork.move = hang  # type: ignore[method-assign,assignment]
    if when == "effects":
        add = ReportRepository.add

        async def add_and_hang(*arguments: Any) -> None:
            await add(*arguments)
            await hang()

        ReportRepository.add = add_and_hang  # type: ignore[method-assign,assignment]
    if when == "stored":
        commit = AnalyticsWork.commit

        async def commit_and_hang(self: AnalyticsWork) -> None:
            await commit(self)
            await hang()

        AnalyticsWork.commit = commit_and_hang  # type: ignore[method-assign,assignment]
    vars(worker.context)["Follower"] = partial(Follower, lease=LEASE)
    # Imported here, because it takes the classes as they are at that time.
    from worker.__main__ import main as work

    work()


if __name__ == "__main__":
    main(sys.argv[1])
