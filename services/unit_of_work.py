"""The unit of work: one transaction over all repositories."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from services.audit.log.repository import AuditLogRepository
from services.audit.repository import AuditRepository
from services.canary.repository import CanaryRepository
from services.catalog.repository import CategoryRepository, InventoryRepository, ProductRepository
from services.credits.approval.repository import ApprovalRepository
from services.credits.corrections.repository import AdjustmentRepository
from services.credits.holds.repository import HoldRepository
from services.credits.ledger.repository import AccountRepository, LedgerRepository
from services.credits.statement.repository import StatementRepository
from services.credits.transfers.repository import TransferRepository
from services.history.repository import HistoryRepository
from services.idempotency.repository import IdempotencyRepository
from services.jobs.repository import JobRepository
from services.orders.days.repository import OrderDayRepository
from services.orders.expiry.repository import OrderExpiryRepository
from services.orders.placing.repository import PlacingRepository
from services.orders.processing.repository import ProcessingRepository
from services.orders.refunds.repository import RefundRepository
from services.orders.repository import OrderRepository
from services.orders.timeline.repository import TimelineRepository
from services.outbox.subscription import TransactionT
from services.reports.repository import HappenedRepository
from services.sweeps.repository import SweepRepository
from services.transaction import RepositoryOf, Transaction
from services.users.attempts.repository import AttemptRepository
from services.users.keys.repository import ApiKeyRepository
from services.users.personal.repository import PersonalRepository
from services.users.registration.repository import RegistrationRepository
from services.users.repository import UserRepository
from services.users.resets.repository import MailRepository
from services.users.roles.repository import RoleRequestRepository
from services.users.sessions.repository import SessionRepository
from services.users.totp.repository import TotpRepository


class UnitOfWork(Transaction):
    """One transaction over all repositories. It rolls back unless `commit` was called.

    Services are given one and never commit. Only the edges do: `services/api/transaction.py` for a request,
    `services/api/groups.py` for several, the worker's processor for a batch of events, and `background` for everything
    else.
    """

    users = RepositoryOf(UserRepository)
    sessions = RepositoryOf(SessionRepository)
    api_keys = RepositoryOf(ApiKeyRepository)
    attempts = RepositoryOf(AttemptRepository)
    role_requests = RepositoryOf(RoleRequestRepository)
    totp = RepositoryOf(TotpRepository)
    registrations = RepositoryOf(RegistrationRepository)
    mails = RepositoryOf(MailRepository)
    categories = RepositoryOf(CategoryRepository)
    products = RepositoryOf(ProductRepository)
    inventory = RepositoryOf(InventoryRepository)
    orders = RepositoryOf(OrderRepository)
    order_placing = RepositoryOf(PlacingRepository)
    order_processing = RepositoryOf(ProcessingRepository)
    order_days = RepositoryOf(OrderDayRepository)
    order_expiry = RepositoryOf(OrderExpiryRepository)
    refunds = RepositoryOf(RefundRepository)
    timelines = RepositoryOf(TimelineRepository)
    accounts = RepositoryOf(AccountRepository)
    ledger = RepositoryOf(LedgerRepository)
    transfers = RepositoryOf(TransferRepository)
    holds = RepositoryOf(HoldRepository)
    approval = RepositoryOf(ApprovalRepository)
    adjustments = RepositoryOf(AdjustmentRepository)
    statements = RepositoryOf(StatementRepository)
    idempotency = RepositoryOf(IdempotencyRepository)
    personal = RepositoryOf(PersonalRepository)
    audits = RepositoryOf(AuditRepository)
    audit_log = RepositoryOf(AuditLogRepository)
    happened = RepositoryOf(HappenedRepository)
    jobs = RepositoryOf(JobRepository)
    sweeps = RepositoryOf(SweepRepository)
    canaries = RepositoryOf(CanaryRepository)
    history = RepositoryOf(HistoryRepository)


OpenUnitOfWork: TypeAlias = Callable[[], UnitOfWork]


@asynccontextmanager
async def background(open_unit_of_work: Callable[[], TransactionT]) -> AsyncIterator[TransactionT]:
    """A unit of work outside a request: for a job, a command, a worker's own rows.

        async with background(worker.open_unit_of_work) as uow:
            await audits.keep(uow, result)

    It is committed at the end of the block, and rolled back if the block raises or is cancelled. What the commit raises
    comes out of the block. Code that only reads opens a `UnitOfWork` itself and commits nothing.
    """
    async with open_unit_of_work() as uow:
        yield uow
        await uow.commit()
