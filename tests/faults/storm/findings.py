"""What went wrong, collected so that one run reports all of it."""

import time
from collections import Counter, defaultdict

_EXAMPLES = 4
_LENGTH = 1500


class Findings:
    """Faults by kind. Any thread may add to them."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []
        self.seen: Counter[str] = Counter()
        """How often each event happened, fault or not; shows whether a run was worth something."""
        self.errors: list[str] = []
        """Errors from the logs; they show where a 500 came from."""
        self._begun = time.monotonic()
        self._course: list[str] = []

    def add(self, kind: str, detail: str) -> None:
        self._found.append((kind, detail[:_LENGTH]))

    def note(self, event: str) -> None:
        """Something that the storm did, for the report."""
        self._course.append(f"{time.monotonic() - self._begun:.1f} {event}")

    def __len__(self) -> int:
        return len(self._found)

    def report(self) -> str:
        """Each kind with its number and the first few examples, then what was seen and done."""
        by_kind: defaultdict[str, list[str]] = defaultdict(list)
        for kind, detail in self._found:
            by_kind[kind].append(detail)
        lines = []
        for kind, details in sorted(by_kind.items()):
            lines.append(f"{kind}: {len(details)}")
            lines += [f"    {detail}" for detail in details[:_EXAMPLES]]
        lines.append(f"seen: {dict(sorted(self.seen.items()))}")
        return "\n".join([*lines, *self.errors, f"course, in seconds: {', '.join(self._course)}"])
