"""The example with which the documentation of the outbox begins works as it stands."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from services.catalog.events import ProductEvent
from services.database import Database
from services.outbox.engine.service import Processor
from services.outbox.events import Claimed
from services.outbox.policy import RetryPolicy
from services.outbox.subscription import Subscription
from services.unit_of_work import UnitOfWork
from tests.concurrency.ticks import rows
from tests.factories import make_product

PAGE = Path(__file__).parents[2] / "docs/explanation/outbox-engine.md"
BEGINNING = re.compile(r"# [^\n]+\n\n```python\n(.*?)```\n", re.DOTALL)
NAMES = (ClassVar, Claimed, ProductEvent, Sequence, Subscription, UnitOfWork)


async def test_the_handler_with_which_the_page_begins_has_ten_lines_and_works(database: Database) -> None:
    found = BEGINNING.match(PAGE.read_text())
    assert found is not None, "the page begins with its example"
    assert len([line for line in found[1].splitlines() if line]) <= 10
    scope: dict[str, Any] = {getattr(one, "__name__", "ClassVar"): one for one in NAMES} | {"__name__": "example"}
    exec(compile(found[1], str(PAGE), "exec"), scope)
    product, other = await make_product(database), await make_product(database)

    async with UnitOfWork(database.write) as uow:
        await uow.inventory.lock([product.id])
        uow.record(scope["ProductSoldOut"](product_id=product.id))
        await uow.commit()
    processor = Processor[UnitOfWork](
        lambda: UnitOfWork(database.write), [scope["subscription"]], retry=RetryPolicy(1, 1.0, 1.0), batch_size=100
    )
    assert (await processor.run_once()).processed == 1

    active = "SELECT is_active FROM products WHERE id = :id"
    assert await rows(database, active, id=product.id) == [False]
    assert await rows(database, active, id=other.id) == [True]
