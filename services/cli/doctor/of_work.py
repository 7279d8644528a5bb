"""Checks of the work: events that wait, dead letters, workers, jobs, consumers of the log, and the audit."""

from importlib.metadata import version

from sqlalchemy import text

from services.cli.doctor.findings import Checked, Finding, note, problem, warning
from services.cli.doctor.installation import Installation
from services.cli.run import ago, counted, lasting
from services.fields import now, time_of
from services.jobs import service as of_jobs
from services.outbox.control import service as control
from services.outbox.control.schemas import WorkerState
from services.outbox.inspection import service as inspection
from services.outbox.inspection.schemas import GroupsWanted
from services.outbox.log import service as log
from services.unit_of_work import UnitOfWork

_WAITS = 60.0
"""Seconds that an event may have been due before it is reported."""

_ROLLOUT = 3600.0
"""Seconds that workers of two releases may run at the same time, as they do during a release."""

_AUDIT_EVERY = 3600.0
_LISTED = 5

_PAUSED = text("SELECT type, changed_at, changed_by FROM outbox_types WHERE paused ORDER BY type")

_FIRST_EVENT = text("SELECT id FROM events ORDER BY id LIMIT 1")


async def events(at: Installation) -> Checked:
    """Events that no worker knows, that wait for too long, or whose type is paused."""
    async with at.work() as work:
        alive = await _alive(work)
        backlog = await work.control.backlog()
        waiting = await work.control.waiting()
        paused = (await (await work.session.connection()).execute(_PAUSED)).all()
    handled = {name for one in alive for name in one.report.get("types", [])}
    findings: list[Finding] = []
    for one in waiting if alive else []:
        number = one.reasons.get("unknown", 0) if one.type in handled else sum(one.reasons.values())
        if number:
            findings.append(_unknown(one.type, number, one.type in handled))
    for row in paused:
        number = sum(sum(one.reasons.values()) for one in waiting if one.type == row.type)
        findings.append(
            note(
                f"the type {row.type} was paused {ago(row.changed_at)} by {row.changed_by}; "
                f"{counted(number, 'event')} wait",
                "Its events are not processed until someone resumes it.",
                "Resume it if the reason is gone.",
                f"waybill outbox resume {row.type}",
            )
        )
    if alive and backlog["oldest_due_seconds"] > _WAITS:
        findings.append(
            warning(
                f"the oldest event has been due for {lasting(backlog['oldest_due_seconds'])}",
                "Workers do not keep up, so orders are confirmed late.",
                "Look at the checks of the database first; then add workers (docs/scaling.md).",
                "waybill outbox types",
            )
        )
    more = "+" if backlog["waiting_is_more"] else ""
    return Checked(f"{backlog['waiting']:,}{more} wait", findings)


def _unknown(name: str, number: int, knows_type: bool) -> Finding:
    return problem(
        f"{counted(number, 'event')} of the type {name} wait, but no live worker knows "
        + ("that version of it" if knows_type else "that type"),
        "They wait until a worker that knows them runs, and so do the later events of their aggregates.",
        "Start workers of the release that writes them. If no release has that type any more, discard its events: "
        "`waybill outbox discard --help`.",
        "waybill outbox types",
    )


async def dead_letters(at: Installation) -> Checked:
    """Events whose attempts are used up."""
    async with at.work() as work:
        backlog = await work.control.backlog()
        groups = (await inspection.groups(work, GroupsWanted(), _LISTED)).data
    number = backlog["dead_letters"]
    if not number:
        return Checked("none")
    kinds = "".join(
        f"; {group.letters:,}{'+' * group.letters_is_more} x {group.type}: {group.message[:100]}" for group in groups
    )
    more = "more than " if backlog["dead_letters_is_more"] else ""
    return Checked(
        f"{more}{number:,}",
        [
            problem(
                f"there are {more}{counted(number, 'dead letter')}{kinds}",
                "They have not taken effect, and later events of their aggregates wait behind them.",
                "Find and remove the cause, then replay them (docs/how-to/replay-dead-letters.md).",
                "waybill outbox dead-letters groups",
            )
        ],
    )


async def workers(at: Installation) -> Checked:
    """Whether workers are alive and healthy, and of one release."""
    async with at.work() as work:
        found = await control.workers(work)
    alive = [one for one in found if one.silent_seconds <= control.SILENT]
    findings = [_of_worker(one, bool(alive)) for one in found if _complaint_of(one) is not None]
    if not alive:
        findings.insert(
            0,
            problem(
                "no worker is alive",
                "Events are not processed: orders stay placed, and holds do not expire.",
                "Start workers, and read their log if they end.",
                "waybill worker",
            ),
        )
    findings += _of_releases(alive)
    return Checked(f"{counted(len(alive), 'worker')} alive", findings)


async def jobs(at: Installation) -> Checked:
    """Scheduled jobs that did not run, keep failing, or are paused."""
    async with at.work() as work:
        is_served = bool(await _alive(work))
        found = await of_jobs.jobs(work)
    findings: list[Finding] = []
    for one in found:
        # Without a worker, none of them runs; `workers` says so.
        if one.complaint is not None and (is_served or one.failed_in_a_row >= of_jobs.FAILING):
            findings.append(
                problem(
                    f"the job {one.name} is {one.complaint}"
                    if one.complaint.startswith("late")
                    else f"the job {one.name} keeps failing: {one.complaint}",
                    "What it keeps up is left undone; docs/explanation/jobs-and-sweeps.md says what that is.",
                    "Read the workers' log for the cause, and run it again.",
                    f"waybill jobs run {one.name}",
                )
            )
        elif one.state == "paused":
            missed = one.due_at < now()
            findings.append(
                (warning if missed else note)(
                    f"the job {one.name} was paused {ago(one.paused_at)} by {one.paused_by}"
                    + (", and has missed a run since" if missed else ""),
                    "What it keeps up is left undone; docs/explanation/jobs-and-sweeps.md says what that is.",
                    "Resume it if the reason is gone.",
                    f"waybill jobs resume {one.name}",
                )
            )
    return Checked(counted(len(found), "job"), findings)


async def consumers(at: Installation) -> Checked:
    """Consumers of the event log that fail, or that no worker runs."""
    async with at.work() as work:
        is_served = bool(await _alive(work))
        found = await log.lags(work)
    findings: list[Finding] = []
    for one in found:
        if one.complaint is not None and (is_served or one.state == "failing"):
            findings.append(
                problem(
                    f"the consumer {one.name} of the event log is in trouble: {one.complaint}",
                    "What it counts or passes on is out of date, and the log keeps its months until it has read them.",
                    "Remove the cause; then resume it, which tries again at once.",
                    f"waybill outbox consumers resume {one.name}",
                )
            )
        elif one.state == "paused":
            findings.append(
                note(
                    f"the consumer {one.name} of the event log was paused {ago(one.paused_at)} by {one.paused_by}",
                    "What it counts or passes on is out of date, and the log keeps its months until it has read them.",
                    "Resume it if the reason is gone.",
                    f"waybill outbox consumers resume {one.name}",
                )
            )
    behind = max((one.seconds for one in found), default=0.0)
    return Checked(f"{counted(len(found), 'consumer')}, at most {lasting(behind)} behind", findings)


async def audit(at: Installation) -> Checked:
    """Whether the last audit of the books found no difference, and is not long ago."""
    async with at.work() as work:
        last = await work.audits.latest()
        good = await work.audits.latest(good=True)
        first = (await (await work.session.connection()).execute(_FIRST_EVENT)).scalar_one_or_none()
    command = "waybill ledger audit"
    if last is None:
        if first is None or (now() - time_of(first)).total_seconds() < 2 * _AUDIT_EVERY:
            return Checked("none has finished yet")
        return Checked("none has finished", [_no_audit("no audit of the books has ever finished")])
    findings = []
    if last.differences:
        findings.append(
            problem(
                f"the audit of {last.started_at:%Y-%m-%d %H:%M} UTC found {counted(last.differences, 'difference')}; "
                + (f"the last good one was {ago(good.started_at)}" if good else "none was ever good"),
                "Balances, orders or stock contradict what was recorded. Someone may be paid too much or too little.",
                "See what differs, and find out what happened since the last good audit (docs/explanation/ledger.md).",
                command,
            )
        )
    age = (now() - last.started_at).total_seconds()
    if age > 3 * _AUDIT_EVERY:
        findings.append(_no_audit(f"the last audit of the books was {lasting(age)} ago"))
    return Checked(f"{'good' if not last.differences else 'differences'}, {ago(last.started_at)}", findings)


def _no_audit(found: str) -> Finding:
    return warning(
        found,
        "A mistake in the books would go unnoticed. Workers audit every hour.",
        "Read the workers' log for `ledger audit not finished`; it may need a higher WAYBILL_AUDIT_TIME_LIMIT.",
        "waybill jobs run audit_ledger",
    )


async def _alive(work: UnitOfWork) -> list[WorkerState]:
    return [one for one in await control.workers(work) if one.silent_seconds <= control.SILENT]


def _complaint_of(one: WorkerState) -> str | None:
    """What is wrong with it, except its clock, which `clocks` reports."""
    return None if one.complaint == one.report.get("clock_complaint") else one.complaint


def _of_worker(one: WorkerState, others_alive: bool) -> Finding:
    is_gone = one.silent_seconds > control.SILENT
    return (warning if is_gone and others_alive else problem)(
        f"the worker {one.pid} on {one.host}: {one.complaint}",
        "Others take over its events; if it was killed, an event may have killed it, and they try those one by one."
        if is_gone
        else "Its share of the events is processed late, or not at all.",
        "If it was stopped on purpose, its row is deleted within a day; otherwise read its log and start it again."
        if is_gone
        else "Read its log, and restart it if it does not recover.",
        "waybill workers list",
    )


def _of_releases(alive: list[WorkerState]) -> list[Finding]:
    """A finding if workers of several releases run."""
    releases = {str(one.report.get("version")): one for one in sorted(alive, key=lambda one: one.started_at)}
    if len(releases) < 2:
        return []
    newest = max(one.started_at for one in alive)
    lasts = (now() - newest).total_seconds() > _ROLLOUT
    return [
        (warning if lasts else note)(
            f"workers of several releases are alive: {', '.join(sorted(releases))}; this command is of "
            f"{version('waybill')}",
            "During a release that is as it should be. Afterwards, the older ones leave newer events alone.",
            "Restart the workers that are older.",
            "waybill workers list",
        )
    ]
