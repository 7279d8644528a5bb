"""One database transaction, with savepoints and the events it causes. It knows the outbox, but no domain."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, overload
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from services.acting import Act, Acting, Action, acting_now
from services.database import CHECKS_ORDER, LENT, SessionFactory, check_owner, commit, outcome_unknown
from services.fields import new_id
from services.outbox.bulk.repository import BulkRepository
from services.outbox.control.repository import ControlRepository
from services.outbox.engine.repository import OutboxRepository
from services.outbox.events import Event, Recorded, Trace
from services.outbox.inspection.repository import InspectionRepository
from services.outbox.log.repository import LogRepository
from services.outbox.recording.repository import RecordingRepository
from services.shielding import shielded
from services.sql import ACTOR, FoundT, OtherT, Read, Sql, SqlAccess, Statement, Write

logger = logging.getLogger(__name__)

SAVEPOINT_BUDGET = 48
"""The most savepoints in one transaction; more than 64 overflow a PostgreSQL backend's subtransaction cache."""

_CHECK_DEFERRED = (Statement("SET CONSTRAINTS ALL IMMEDIATE"), Statement("SET CONSTRAINTS ALL DEFERRED"))


class UnorderedEvents(Exception):
    """Two transactions record events of one aggregate at the same time, so they hold no lock in common.

    The order of such events is left to chance, and a consumer may see them in another order than the one in which they
    were committed. Found in development only (`Settings.checks_order`).
    """


class Bell(Protocol):
    """Rung after a commit that queued an event. `ring` must return immediately and never fail."""

    def ring(self) -> None: ...


RepositoryT = TypeVar("RepositoryT", bound=SqlAccess)


class RepositoryOf(Generic[RepositoryT]):
    """A repository as an attribute of a transaction: created at its first use, on that transaction's session."""

    def __init__(self, kind: type[RepositoryT]) -> None:
        self._kind = kind

    def __set_name__(self, owner: type["Transaction"], name: str) -> None:
        self._name = name

    def __get__(self, transaction: "Transaction", owner: type["Transaction"]) -> RepositoryT:
        # Python finds the instance's own attribute first from then on.
        repository = transaction.__dict__[self._name] = self._kind(transaction.session)
        return repository


class Transaction:
    """One transaction. It rolls back unless `commit` was called.

    The connection is taken from the pool at the first statement, so opening a transaction costs nothing. One task at a
    time may use it.
    """

    outbox = RepositoryOf(OutboxRepository)
    recording = RepositoryOf(RecordingRepository)
    log = RepositoryOf(LogRepository)
    control = RepositoryOf(ControlRepository)
    inspection = RepositoryOf(InspectionRepository)
    bulk = RepositoryOf(BulkRepository)

    def __init__(
        self,
        factory: SessionFactory,
        bell: Bell | None = None,
        trace: Trace | None = None,
        *,
        acting: Acting | None = None,
        name: str = "a unit of work",
    ) -> None:
        """`acting` is who acts, unless that is only found out later (`act_as`); the default is `acting_now`."""
        self._factory = factory
        self._name = name
        self._bell = bell
        self.acting = acting or acting_now()
        trace = trace or Trace()
        self.trace = trace if trace.actor is not None else trace._replace(actor=self.acting.actor)
        self._events: list[Recorded] = []
        self._writes: list[Write] = []
        self._acts: list[Act] = []
        self._work_queued = False
        self._committing = False
        self.leaves_out_locked = False
        """Whether a handler should leave out rows that another transaction has locked. Set by the outbox engine."""
        self._savepoints = 0
        self._unreleased: str | None = None
        """A plain savepoint whose block has ended. The commit releases it, or the next savepoint in its own trip."""

    async def __aenter__(self) -> Self:
        self.session = self._factory(info={"work": self._name, ACTOR: self.trace.actor})
        self._sql = Sql.of(self.session)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.rollback()
        Sql.forget(self.session)

    def act_as(self, actor: str, user_id: int | None = None) -> None:
        """From now on, what is written says that this actor did it, with this user behind it (`services/acting.py`)."""
        self.acting = Acting(actor, user_id, self.acting.address)
        self.trace = Trace(self.trace.request_id, self.trace.traceparent, actor)
        self.session.info[ACTOR] = actor

    def record_act(self, action: Action, object: str, *, reason: str = "", **details: Any) -> None:  # noqa: A002
        """Write in this transaction to the audit log what is being done, to which `object` (`kind/id`), and why.

        The details are small and contain no secrets. A rollback undoes it, as it undoes what was done.
        """
        self._acts.append(Act(action, object, self.acting, self.trace.request_id, reason, details))

    def record_acts(self, acts: Sequence[Act]) -> None:
        """Write acts of others to the audit log, in this transaction."""
        self._acts += acts

    def record(self, event: Event, trace: Trace | None = None, *, available_at: datetime | None = None) -> UUID:
        """Write the event in this transaction, at the latest when it commits. Returns its id.

        The transaction must hold a lock on the event's aggregate, or create it. `trace` says where the event came from;
        the default is the trace of this unit of work, whose actor is also that of a `trace` without one. An event with
        `available_at` is deferred: no worker takes it before that time, and later events of its aggregate do not wait
        for it.
        """
        assert available_at is None or event.queued, "only an event that a worker processes can be deferred"
        event_id = new_id()
        if trace is None:
            trace = self.trace
        elif trace.actor is None:
            trace = Trace(trace.request_id, trace.traceparent, self.trace.actor)
        self._events.append(Recorded(event_id, event, trace, available_at))
        return event_id

    @property
    def recorded(self) -> tuple[Event, ...]:
        """The events recorded and not yet written."""
        return tuple(one.event for one in self._events)

    @overload
    async def read(self, one: Read[FoundT], other: Read[OtherT], /) -> tuple[FoundT, OtherT]: ...

    @overload
    async def read(self, *reads: Read[Any]) -> tuple[Any, ...]: ...

    async def read(self, *reads: Read[Any]) -> tuple[Any, ...]:
        """Run the reads of several repositories in this order, in one trip to the database."""
        return await self._sql.read(*reads)

    @property
    def has_work(self) -> bool:
        """Whether it has recorded events or writes that are not yet written."""
        return bool(self._events or self._writes or self._acts)

    def write_with_events(self, *writes: Write) -> None:
        """Write this together with the recorded events, in the same trip to the database.

        That is at the latest when it commits. Reads before then do not see it.
        """
        self._writes += writes

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """While the block runs, whatever would commit, roll back or close this transaction raises `NotYours` instead.

        For code that was given the transaction to work in, and has no say in how it ends.
        """
        driver = await self._sql.driver()
        self.session.info[LENT] = driver.lent = True
        try:
            yield
        finally:
            self.session.info[LENT] = driver.lent = False

    async def flush(self) -> None:
        """Write the recorded events, and the writes that go with them, now."""
        await self._write()

    async def commit(self) -> None:
        """Write the recorded events and commit; then ring the doorbell if a worker has work.

        It returns only if the commit is proven (`services.connections`). If it raises, everything is rolled back,
        unless the cause is `CommitUnknown`: then the outcome is unknown. A commit that has begun is finished even if
        the caller is cancelled. After a success the unit of work can begin a new transaction; after an error, close it.
        """
        check_owner(self.session)
        # Last before the commit, so that an aggregate's events get their positions while its row is locked.
        await self._write()
        self._unreleased = None
        self._sql.release()
        self._committing = True
        await shielded(self._commit())

    async def _commit(self) -> None:
        try:
            await commit(self.session)
        except BaseException as error:
            if outcome_unknown(error):
                logger.error("the outcome of a commit is unknown. Unit of work: %s: %s", self._name, error)
            # The caller may have been cancelled, so the connection is closed here.
            await self._close()
            raise
        finally:
            self._committing = False
        if self._bell is not None and self._work_queued:
            self._bell.ring()
        self._work_queued = False

    async def check(self) -> None:
        """Write the recorded events and check deferred constraints now: what would fail the commit fails here."""
        await self._write()
        await self._sql.run_together(*_CHECK_DEFERRED)

    async def complete(self, positions: Sequence[int], transaction: int) -> bool:
        """Write the recorded events and delete these outbox rows, which this transaction has locked.

        Returns False if this is not the transaction with that id: the caller must not commit then.
        """
        if self.has_work:
            deleted = await self._write(self.outbox.completing(positions, transaction))
        else:
            deleted = await self.outbox.complete(positions, transaction)
        return deleted == len(positions)

    async def _write(self, *more: Write) -> int:
        """Write the recorded events and the writes that go with them; returns the row count of the last write."""
        events = [self.recording.appending(self._events)] if self._events else []
        aggregates = (
            sorted({one.event.aggregate for one in self._events}) if self.session.info.get(CHECKS_ORDER) else []
        )
        checks = [self.recording.reserving(aggregates, self._name)] if aggregates else []
        acts = [self.recording.keeping(self._acts)] if self._acts else []
        writes = [*checks, *self._writes, *events, *acts, *more]
        if not writes:
            return 0
        counts = await self._sql.write(*writes)
        if checks and counts[0]:
            await self._refuse_unordered(aggregates)
        self._work_queued = self._work_queued or any(one.event.queued for one in self._events)
        self._forget()
        return counts[-1]

    def _forget(self) -> None:
        self._events.clear()
        self._writes.clear()
        self._acts.clear()

    async def _refuse_unordered(self, aggregates: Sequence[str]) -> None:
        """Raises `UnorderedEvents` if another running transaction has written events of one of these aggregates."""
        for aggregate, process, work in await self.recording.other_writers(aggregates):
            raise UnorderedEvents(
                f"{self._name!r} and {work!r} (server process {process}) write events of {aggregate} at the same time, "
                "in an order that is left to chance; lock the aggregate before you record an event of it"
            )

    async def rollback(self) -> None:
        """Undo what was done so far and release the connection; the unit of work can begin a new transaction.

        Objects that were read stay readable, but detached. A rollback is finished even if the caller is cancelled
        repeatedly. It never fails, and takes at most `PROMPT` seconds. A commit that has begun is left alone.
        Raises `NotYours` while the transaction is lent, as does `commit`.
        """
        if self._committing:
            return
        check_owner(self.session)
        self._forget()
        self._work_queued = False
        self._unreleased = None
        self._sql.release()
        # `Session.rollback` would expire them, and an expired attribute cannot be awaited.
        if self.session.in_transaction():
            await shielded(self._close())
        else:
            # Without a connection there is nothing to wait for.
            self.session.sync_session.close()

    async def _close(self) -> None:
        try:
            await self.session.close()
        except DBAPIError as error:
            # The connection is then closed, and the server rolls back.
            logger.info("the server did not answer a rollback. Unit of work: %s: %s", self._name, error.orig)

    @asynccontextmanager
    async def savepoint(self, *, plain: bool = False, check: bool = False) -> AsyncIterator[None]:
        """If the block raises, undo only its work and what it recorded; the error propagates to the caller.

        ORM objects added before the block are flushed first and survive. At most 64 in one transaction: beyond that a
        PostgreSQL backend's subtransaction cache overflows.

        `plain` is for blocks that write with plain SQL only: an ORM flush that fails would take the transaction with
        it, not only the block. With `check`, what would fail the commit fails the block (see `check`).
        """
        before = list(self._events), list(self._writes), list(self._acts)
        # SQLAlchemy's nested transaction keeps its objects in step with the database, and costs six times as much.
        objects = self.session.identity_map.keys() or self.session.new
        try:
            if plain and not objects:
                async with self._plain_savepoint(check=check):
                    yield
            else:
                async with self._session_savepoint(check=check):
                    yield
        except BaseException:
            # Including those that the block wrote and the savepoint undid.
            self._events[:], self._writes[:], self._acts[:] = before
            raise

    @asynccontextmanager
    async def _session_savepoint(self, *, check: bool) -> AsyncIterator[None]:
        """SQLAlchemy's savepoint, for a session that holds objects."""
        if self._unreleased is not None:
            await self._sql.run(Statement(f"RELEASE SAVEPOINT {self._unreleased}"))
            self._unreleased = None
        try:
            async with self.session.begin_nested():
                # The session would set it only when it is next used, and plain SQL bypasses the session.
                await self.session.connection()
                yield
                if check:
                    await self.check()
        finally:
            # The block's own went with it.
            self._unreleased = None

    @asynccontextmanager
    async def _plain_savepoint(self, *, check: bool) -> AsyncIterator[None]:
        """A savepoint for a session that holds no objects."""
        self._savepoints += 1
        name = f"waybill_{self._savepoints}"
        before = [Statement(f"RELEASE SAVEPOINT {self._unreleased}")] if self._unreleased else []
        self._unreleased = None
        await self._sql.run_together(*before, Statement(f"SAVEPOINT {name}"))
        try:
            yield
            assert not self.session.new, "a plain savepoint is for plain SQL"
            if check:
                await self._write()
                await self._sql.run_together(*_CHECK_DEFERRED, Statement(f"RELEASE SAVEPOINT {name}"))
        except BaseException:
            # All objects that the session has now come from the block.
            self.session.expunge_all()
            await self._sql.run(Statement(f"ROLLBACK TO SAVEPOINT {name}"))
            # The block's own went with it.
            self._unreleased = None
            raise
        # Releasing it releases the block's own, too.
        self._unreleased = None if check else name
