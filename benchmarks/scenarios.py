"""The scenarios of a benchmark: which of them are run, and how long each takes."""

import argparse
import sys
import time
from collections.abc import Collection, Iterator, Sequence


def add_only(parser: argparse.ArgumentParser, known: Collection[str]) -> None:
    """Let `--only` choose some of the scenarios; its default is all."""

    def chosen(names: str) -> list[str]:
        wanted = names.split(",")
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown scenario {', '.join(unknown)}; known: {', '.join(known)}")
        return wanted

    parser.add_argument("--only", type=chosen, default=list(known), help=f"some of {','.join(known)} (default: all)")


def timed(names: Sequence[str]) -> Iterator[str]:
    """The names in turn; says on stderr how long the caller took with each."""
    for name in names:
        began = time.monotonic()
        yield name
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
