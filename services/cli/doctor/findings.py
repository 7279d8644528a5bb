"""What the checks of `waybill doctor` return."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is. The exit code is 1 from `warning` on."""

    note = "note"
    """Good to know; nothing has to be done."""
    warning = "warning"
    """It works, but not for long, or not as well as it should."""
    problem = "problem"
    """Something does not work, or is not safe."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check has found: what it is, why it matters, and what to do; with a command if there is one."""

    severity: Severity
    found: str
    why: str
    do: str
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check has seen, in a few words, and its findings."""

    saw: str
    findings: Sequence[Finding] = ()
    is_final: bool = False
    """Whether the checks that depend on this one would only repeat what it has found."""


class State(StrEnum):
    """How a check ended: the severity of its worst finding, or one of the others."""

    ok = "ok"
    note = "note"
    warning = "warning"
    problem = "problem"
    failed = "failed"
    """The check itself failed, so nothing is known."""
    skipped = "skipped"
    """It depends on what another check has found to be missing."""


_BY_BADNESS = (Severity.problem, Severity.warning, Severity.note)
_BAD = frozenset({State.warning, State.problem, State.failed})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one check ended. `seconds` is how long it took."""

    name: str
    state: State
    saw: str
    findings: Sequence[Finding] = ()
    seconds: float = 0.0
    is_final: bool = False
    """Whether those that depend on it are skipped."""

    @property
    def is_bad(self) -> bool:
        """Whether someone has to act."""
        return self.state in _BAD


def state_of(findings: Sequence[Finding]) -> State:
    """The state of a check with these findings."""
    present = {finding.severity for finding in findings}
    return next((State(severity.value) for severity in _BY_BADNESS if severity in present), State.ok)


def problem(found: str, why: str, do: str, command: str | None = None) -> Finding:
    return Finding(Severity.problem, found, why, do, command)


def warning(found: str, why: str, do: str, command: str | None = None) -> Finding:
    return Finding(Severity.warning, found, why, do, command)


def note(found: str, why: str, do: str, command: str | None = None) -> Finding:
    return Finding(Severity.note, found, why, do, command)
