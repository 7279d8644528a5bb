"""Checks of the settings: what production refuses, and connections without TLS."""

from collections.abc import Iterable

from services.cli.doctor.findings import Checked, Finding, Severity, problem, warning
from services.cli.doctor.installation import Installation
from services.safety import OF_ADDRESSES, RULES, Fault, is_loopback
from services.settings import Settings

_PAGE = "docs/reference/production-checks.md says more"


async def settings(at: Installation) -> Checked:
    """What production refuses, apart from addresses."""
    of = at.settings
    if of.is_development:
        return Checked("development; what production requires is not checked", _in_earnest(of))
    faults = [fault for rule in RULES if rule not in OF_ADDRESSES for fault in rule(of)]
    return Checked(_saw(len(faults), "production"), [_unsafe(fault) for fault in faults])


async def tls(at: Installation) -> Checked:
    """Whether connections to other hosts are encrypted, and use a password or a certificate."""
    faults = [fault for rule in OF_ADDRESSES for fault in rule(at.settings)]
    if not faults:
        return Checked("nothing is sent to another host unencrypted or without credentials")
    # In development it may be a trial; production does not start.
    severity = Severity.warning if at.settings.is_development else Severity.problem
    return Checked(_saw(len(faults), "the addresses"), [_exposed(fault, severity) for fault in faults])


def of_refused(faults: Iterable[Fault]) -> list[Finding]:
    """The findings for settings with which no process starts."""
    return [
        problem(
            f"{_variable(fault)}: {fault.message}",
            "No process starts with these settings, and nothing else can be checked.",
            f"Correct {_variable(fault)}; docs/reference/settings.md lists every setting.",
        )
        for fault in faults
    ]


def _in_earnest(of: Settings) -> list[Finding]:
    """A warning if a server on another host is used with the settings of development."""
    if is_loopback(of.async_url().host or "localhost"):
        return []
    return [
        warning(
            "WAYBILL_ENVIRONMENT is development, but the database is on another host",
            "In development, signing keys that everyone knows, cheap password hashes and missing second factors are "
            "accepted.",
            f"If this installation holds real data, set WAYBILL_ENVIRONMENT=production ({_PAGE}).",
        )
    ]


def _unsafe(fault: Fault) -> Finding:
    return problem(
        f"{_variable(fault)} {fault.message}",
        "The API and the workers do not start with it outside development.",
        f"Correct {_variable(fault)} and restart the processes ({_PAGE}).",
    )


def _exposed(fault: Fault, severity: Severity) -> Finding:
    return Finding(
        severity,
        f"{_variable(fault)} {fault.message}",
        "Anyone who can read that network sees passwords, orders and events, and may change them.",
        f"Correct {_variable(fault)} and restart the processes ({_PAGE}).",
    )


def _variable(fault: Fault) -> str:
    return f"WAYBILL_{fault.setting.upper()}"


def _saw(faults: int, what: str) -> str:
    return f"{what}: {faults} {'fault' if faults == 1 else 'faults'}" if faults else what
