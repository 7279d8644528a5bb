"""Names and values in the environment and in `.env`: names that are not settings, files with values, addresses."""

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from services.safety import Fault

PREFIX = "waybill_"
_OF_FILE = "_file"

_OTHERS = re.compile(
    # Kubernetes and Docker describe each service called waybill, or waybill-..., to every container.
    r"waybill(_\w+)?_(service_host|service_port(_\w+)?|port(_\d+_(tcp|udp|sctp)(_(proto|port|addr))?)?)"
    # The tests, and the secrets of `waybill import-retail` and `waybill demo`.
    r"|waybill_test_\w+|waybill_(operator|approver)_(email|password)"
)
"""Names that begin like ours, but are not about the processes' settings."""


def unknown_names(names: Collection[str], known: Collection[str], where: str) -> Iterator[Fault]:
    """A fault for each name, in lower case, that begins like a setting's and is none of the fields `known`."""
    for name in sorted(names):
        if not name.startswith(PREFIX) or name[len(PREFIX) :] in known or _OTHERS.fullmatch(name):
            continue
        setting = name[len(PREFIX) :]
        nearest = get_close_matches(setting, known, 1)
        hint = f"did you mean {(PREFIX + nearest[0]).upper()}?" if nearest else "see docs/reference/settings.md"
        yield Fault(setting, f"is set in {where}, but there is no such setting; {hint}")


def file_names(settings: Collection[str]) -> set[str]:
    """The names of the settings that name the file with another one's value."""
    return {f"{name}{_OF_FILE}" for name in settings}


def read_files(
    variables: Mapping[str, str | None], settings: Collection[str], where: str
) -> tuple[dict[str, Any], list[Fault]]:
    """The values of those settings that are in files, which `WAYBILL_..._FILE` names, and what is wrong with them."""
    values: dict[str, Any] = {}
    faults = []
    for setting in settings:
        path = variables.get(f"{PREFIX}{setting}{_OF_FILE}")
        if not path:
            continue
        if variables.get(f"{PREFIX}{setting}"):
            faults.append(Fault(setting, f"is set in {where}, and so is its file; remove one of them"))
            continue
        try:
            values[setting] = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            faults.append(Fault(f"{setting}{_OF_FILE}", f"cannot read {path}: {reason}"))
    return values, faults


def can_carry_mail(address: str) -> bool:
    """Whether mails can be sent to this address: an SMTP server's, a folder's, or `console:`."""
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError:
        return False
    match url.scheme:
        case "smtp" | "smtps":
            return bool(url.hostname) and port != 0
        case "file":
            return bool(url.path) and not url.netloc
    return address == "console:"
