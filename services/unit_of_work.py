"""The unit of work: one transaction over all repositories."""

from collections.abc import Callable
from typing import TypeAlias

from services.audit.repository import AuditRepository
from services.canary.repository import CanaryRepository
from services.catalog.repository import CategoryRepository, InventoryRepository, ProductRepository
from services.credits.corrections.repository import AdjustmentRepository
from services.credits.holds.repository import HoldRepository
from services.credits.ledger.repository import LedgerRepository
from services.credits.statement.repository import StatementRepository
from services.credits.transfers.repository import TransferRepository
from services.idempotency.repository import IdempotencyRepository
from services.jobs.repository import JobRepository
from services.orders.days.repository import OrderDayRepository
from services.orders.expiry.repository import OrderExpiryRepository
from services.orders.processing.repository import ProcessingRepository
from services.orders.refunds.repository import RefundRepository
from services.orders.repository import OrderRepository
from services.sweeps.repository import SweepRepository
from services.transaction import RepositoryOf, Transaction
from services.users.repository import UserRepository


class UnitOfWork(Transaction):
    """One transaction over all repositories. It rolls back unless `commit` was called.

        async with UnitOfWork(factory, bell) as uow:
            order = await orders.place(uow, buyer, wanted)
            await uow.commit()

    Only the edges commit: the API's transaction edge, the worker's processor, a job, a command.
    """

    users = RepositoryOf(UserRepository)
    categories = RepositoryOf(CategoryRepository)
    products = RepositoryOf(ProductRepository)
    inventory = RepositoryOf(InventoryRepository)
    orders = RepositoryOf(OrderRepository)
    order_processing = RepositoryOf(ProcessingRepository)
    order_days = RepositoryOf(OrderDayRepository)
    order_expiry = RepositoryOf(OrderExpiryRepository)
    refunds = RepositoryOf(RefundRepository)
    ledger = RepositoryOf(LedgerRepository)
    transfers = RepositoryOf(TransferRepository)
    holds = RepositoryOf(HoldRepository)
    adjustments = RepositoryOf(AdjustmentRepository)
    statements = RepositoryOf(StatementRepository)
    idempotency = RepositoryOf(IdempotencyRepository)
    audits = RepositoryOf(AuditRepository)
    jobs = RepositoryOf(JobRepository)
    sweeps = RepositoryOf(SweepRepository)
    canaries = RepositoryOf(CanaryRepository)


OpenUnitOfWork: TypeAlias = Callable[[], UnitOfWork]
