"""Find statements of new migrations that would block or break the release that is running.

squawk judges the SQL that `alembic upgrade --sql` prints, and a few rules of our own judge what it does not look at.
Migrations of the release before, and older ones, are not judged: they have run. Exit code 1 if something is found.

A migration may do what a rule forbids if it says why, in a line of its own:

    # lint-ignore: ban-drop-column (no release reads it since 0021)
"""

import argparse
import io
import json
import logging
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import Script, ScriptDirectory

ROOT = Path(__file__).parents[1]
NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"
SQUAWK = Path(sys.executable).with_name("squawk")

OLDEST_SERVER = "15"
LEFT_OUT = (
    "ban-drop-constraint",  # a check is replaced by a new one; whether the old release minds is tested by running it
    "prefer-bigint-over-int",  # types are chosen in the models
    "prefer-bigint-over-smallint",
    "prefer-text-field",
    "prefer-robust-stmts",  # a step is one transaction; for what is outside, see `index-not-rebuilt`
    "require-statement-timeout",  # migrations have one of their own: a scan may take long, waiting for a lock may not
)

IGNORED = re.compile(r"^# lint-ignore: (?P<rules>[a-z-]+(?:, [a-z-]+)*) \((?P<reason>.+)\)$", re.MULTILINE)

LOCKS = re.compile(
    r"(ALTER|DROP|LOCK|TRUNCATE|COMMENT|CREATE (UNIQUE )?INDEX|CREATE (OR REPLACE )?TRIGGER)\b", re.IGNORECASE
)
WAITS_FOR_NOBODY = re.compile(r"\bCONCURRENTLY\b|\bVALIDATE CONSTRAINT\b", re.IGNORECASE)
CHANGES_ROWS = re.compile(r"(UPDATE|DELETE FROM)\s+(ONLY\s+)?(?P<table>[\w.\"]+)", re.IGNORECASE)
NEW_TABLE = re.compile(r"CREATE TABLE\s+(IF NOT EXISTS\s+)?(?P<table>[\w.\"]+)", re.IGNORECASE)
INDEX = re.compile(
    r"(?P<verb>CREATE|DROP)\s+(UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(IF EXISTS\s+)?(?P<name>[\w.\"]+)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Finding:
    rule: str
    message: str
    statement: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, default=ROOT / "alembic.ini", help="another alembic.ini")
    arguments = parser.parse_args()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    released = tomllib.loads((ROOT / ".ci" / "release_before.toml").read_text())["revisions"]
    judged, found = 0, 0
    for section in sections(arguments.config):
        config = Config(arguments.config, ini_section=section)
        config.attributes["database_url"] = NOWHERE
        for script in newer(ScriptDirectory.from_config(config), released.get(section)):
            judged += 1
            for line in lint(config, script):
                found += 1
                sys.stderr.write(f"{Path(script.path).name}: {line}\n")
    sys.stdout.write(f"{judged} migrations are newer than the release before; {found} faults.\n")
    return 1 if found else 0


def sections(ini: Path) -> list[str]:
    """The sections of alembic.ini that have a history."""
    parser = Config(ini).file_config
    return [name for name in parser.sections() if parser.has_option(name, "script_location")]


def newer(scripts: ScriptDirectory, released: str | None) -> list[Script]:
    """The steps after `released`, oldest first. A merge has no statements that could be printed."""
    old = {script.revision for script in scripts.iterate_revisions(released, "base")} if released else set()
    found = [script for script in scripts.walk_revisions() if script.revision not in old and not script.is_merge_point]
    return found[::-1]


def lint(config: Config, script: Script) -> Iterator[str]:
    """What is wrong with a migration, a line or two for each fault."""
    up, down = sql_of(config, script), sql_of(config, script, down=True)
    findings = [
        *squawk(up),
        *own_rules(up),
        *(found for found in own_rules(down) if found.rule == "missing-lock-timeout"),
    ]
    text = Path(script.path).read_text()
    allowed = {rule for line in IGNORED.finditer(text) for rule in line["rules"].split(", ")}
    for found in findings:
        if found.rule not in allowed:
            yield f"{found.rule}: {found.message}\n    {found.statement}"
    for rule in sorted(allowed - {found.rule for found in findings}):
        yield f"unused-ignore: nothing in this migration breaks {rule}"
    if text.count("# lint-ignore") > len(IGNORED.findall(text)):
        yield "bad-ignore: write it as `# lint-ignore: RULE, RULE (the reason)`, in a line of its own"


def sql_of(config: Config, script: Script, *, down: bool = False) -> str:
    """The statements of one step."""
    parent = script.down_revision or "base"
    config.output_buffer = io.StringIO()
    if down:
        command.downgrade(config, f"{script.revision}:{parent}", sql=True)
    else:
        command.upgrade(config, f"{parent}:{script.revision}" if parent != "base" else script.revision, sql=True)
    return config.output_buffer.getvalue()


def squawk(sql: str) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "step.sql")
        file.write_text(sql)
        options = [f"--pg-version={OLDEST_SERVER}", "--reporter=json", f"--exclude={','.join(LEFT_OUT)}"]
        ran = subprocess.run([SQUAWK, *options, file], capture_output=True, text=True, check=False)
    try:
        reported = json.loads(ran.stdout)
    except ValueError:
        raise RuntimeError(f"squawk failed: {ran.stderr or ran.stdout}") from None
    lines = sql.splitlines()
    for fault in reported:
        help_ = f" {fault['help']}" if fault["help"] else ""
        yield Finding(fault["rule_name"], f"{fault['message']}{help_}", lines[fault["line"]].strip())


def own_rules(sql: str) -> Iterator[Finding]:
    """Locks without a limit, many rows changed in one transaction, and indexes that cannot be built again."""
    new_tables, dropped = set(), set()
    inside, limited = False, False
    for statement in statements(sql):
        word = statement.upper()
        first = statement.splitlines()[0]
        if word == "BEGIN":
            inside, limited = True, False
        elif word == "COMMIT":
            inside = False
        elif word.startswith("SET LOCAL LOCK_TIMEOUT"):
            limited = True
        if made := NEW_TABLE.match(statement):
            new_tables.add(made["table"])
        if LOCKS.match(statement) and not WAITS_FOR_NOBODY.search(statement) and not (inside and limited):
            where = "first in each transaction" if inside else "in a transaction, not in autocommit_block()"
            yield Finding("missing-lock-timeout", f"`SET LOCAL lock_timeout` must come before it, {where}.", first)
        changed = CHANGES_ROWS.match(statement)
        if inside and changed and changed["table"] not in new_tables and "alembic_version" not in changed["table"]:
            yield Finding(
                "rows-in-one-transaction", "Change rows with update_in_batches (migrations/batches.py).", first
            )
        if index := INDEX.match(statement):
            name = index["name"].rpartition(".")[2]
            if index["verb"].upper() == "DROP":
                dropped.add(name)
            elif name not in dropped:
                yield Finding(
                    "index-not-rebuilt",
                    "An interrupted build leaves an invalid index behind: drop it first, with if_exists=True.",
                    first,
                )


def statements(sql: str) -> Sequence[str]:
    """Each statement, without the comments that Alembic prints between them."""
    without = re.sub(r"^--.*$", "", sql, flags=re.MULTILINE)
    return [found for part in without.split(";\n\n") if (found := part.strip().removesuffix(";"))]


if __name__ == "__main__":
    sys.exit(main())
