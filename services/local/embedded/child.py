"""Child processes that never outlive us, never see our Ctrl-C, and do not run as root if the server refuses to."""

import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

from services.cli.console import CommandError

_CLONE_NEWUSER = 0x1000_0000
_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x2008_0522
LOG_LIMIT = 10_000_000
"""The size limit of a log file in bytes; as many bytes of older lines are kept in a file that ends in `.old`."""
_KEPT_ON_A_FULL_DISK = 100_000
"""Bytes of a log that are kept if there is no room for the older lines."""

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

_WATCHDOG = """
import os, select, sys
pid, death_signal = int(sys.argv[1]), int(sys.argv[2])
while not select.select([0], [], [], 1)[0]:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        sys.exit()
os.kill(pid, death_signal)
"""


class EmbeddedServerError(CommandError):
    """An embedded server cannot be found, started or used; the message says what to do."""


class PortTaken(EmbeddedServerError):
    """Another program listens on the server's port."""


@dataclass(frozen=True, slots=True)
class Disguise:
    """How a child becomes an ordinary user that has an entry in the password database.

    `namespace`: it enters a user namespace in which it is that user, and stays the same user outside: files keep their
    owner and every path stays reachable. `setuid`: it really becomes that user, and keeps the one capability that lets
    it pass through our folders.
    """

    kind: Literal["namespace", "setuid"]
    uid: int
    gid: int


@cache
def disguise_for_server() -> Disguise | None:
    """The disguise that PostgreSQL needs, since it refuses root and unknown users. None for an ordinary user."""
    is_root = os.geteuid() == 0
    if not is_root and _has_passwd_entry(os.geteuid()):
        return None
    user = _ordinary_user()
    namespace = Disguise("namespace", user.pw_uid, user.pw_gid)
    if _works(namespace):
        return namespace
    if is_root:
        return Disguise("setuid", user.pw_uid, user.pw_gid)
    raise EmbeddedServerError(
        f"PostgreSQL needs a user it can look up, and uid {os.geteuid()} has no entry in the password database "
        "(user namespaces are not allowed here either). Run as a user with an entry, or set WAYBILL_DATABASE_URL"
    )


def spawn(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    log: Path,
    death_signal: signal.Signals,
    environment: Mapping[str, str],
    disguise: Disguise | None = None,
    pass_fds: Sequence[int] = (),
) -> "subprocess.Popen[bytes]":
    """Start `command` in its own session, with its output appended to `log`.

    It gets `death_signal` when we die, however we die. Call it from the main thread: Linux sends that signal when the
    spawning *thread* ends. Raises `EmbeddedServerError` if the command cannot be executed or its log cannot be opened.
    """
    try:
        with _open_log(log) as output:
            process = subprocess.Popen(
                [os.fspath(part) for part in command],
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal reaches only us; we stop the children in the right order.
                start_new_session=True,
                umask=0o077,
                pass_fds=tuple(pass_fds),
                preexec_fn=_before_exec(disguise, death_signal),
            )
        if _libc is None:
            _watch_over(process, death_signal)
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedServerError(f"cannot start {os.fspath(command[0])}: {error}") from error
    return process


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    disguise: Disguise | None = None,
    given: str = "",
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, with `given` as its standard input, and return its output.

    Raises `EmbeddedServerError` if it cannot be executed.
    """
    try:
        return subprocess.run(
            [os.fspath(part) for part in command],
            cwd=cwd,
            env=dict(environment),
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            umask=0o077,
            start_new_session=True,
            preexec_fn=_before_exec(disguise, signal.SIGKILL),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedServerError(f"cannot run {os.fspath(command[0])}: {error}") from error


def stop(process: "subprocess.Popen[bytes]", *steps: tuple[signal.Signals, float]) -> int:
    """Send each signal in turn and give the process its seconds to exit; then kill it. Returns the exit code."""
    for wanted, seconds in steps:
        if process.poll() is None:
            process.send_signal(wanted)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    return process.wait()


def tail(log: Path, size: int = 3000, since: int = 0) -> str:
    """The end of a log file: at most `size` bytes, starting at byte `since` or later; empty if there is no file.

    If the file has become shorter than `since`, its older lines were moved, and everything in it is new.
    """
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size, since if since <= end else 0))
            return file.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


def log_size(log: Path) -> int:
    """The size of a log file in bytes; 0 if there is no such file."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def port_was_taken(said: str) -> bool:
    """Whether the end of a server's log says that it could not listen on its port."""
    return "address already in use" in said.lower()


def bound_log(log: Path) -> None:
    """Move a log's lines to `NAME.old` once it is longer than `LOG_LIMIT`, while its writer keeps writing.

    The writer must append, as commands started by `spawn` do. Only what it writes between the last copy and the
    truncation is lost; on a full disk, the older lines are lost. Raises `OSError`.
    """
    if log_size(log) <= LOG_LIMIT:
        return
    old = log.with_name(log.name + ".old")
    with log.open("r+b") as file:
        file.seek(-LOG_LIMIT, os.SEEK_END)
        try:
            with open(old, "wb", opener=_owner_only) as kept:
                kept.write(file.read(LOG_LIMIT))
                # What was written in the meantime.
                kept.write(file.read(LOG_LIMIT))
        except OSError:
            old.unlink(missing_ok=True)
            file.seek(-min(_KEPT_ON_A_FULL_DISK, LOG_LIMIT), os.SEEK_END)
            last = file.read(LOG_LIMIT)
            file.truncate(0)
            with suppress(OSError), _append_to(log) as again:
                again.write(last)
        else:
            file.truncate(0)


def _open_log(log: Path) -> IO[bytes]:
    with suppress(OSError):
        bound_log(log)
    return _append_to(log)


def _append_to(log: Path) -> IO[bytes]:
    return open(log, "ab", opener=_owner_only)


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _has_passwd_entry(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _ordinary_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        others = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
        if not others:
            raise EmbeddedServerError(
                "PostgreSQL refuses to run as root, and there is no other user to run it as. "
                "Run as an ordinary user, or set WAYBILL_DATABASE_URL"
            ) from None
        return others[0]


def _works(disguise: Disguise) -> bool:
    """Try it in a separate process: what is allowed differs between kernels, containers and their profiles."""
    if _libc is None:
        return False
    try:
        proof = subprocess.run(
            ["/bin/sh", "-c", "id -u"],
            capture_output=True,
            check=False,
            text=True,
            preexec_fn=_before_exec(disguise, signal.SIGKILL),
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return proof.stdout.strip() == str(disguise.uid)


def _before_exec(disguise: Disguise | None, death_signal: signal.Signals) -> Callable[[], None]:
    """What the child does between fork and exec; everything that can be looked up is looked up before the fork."""
    parent, uid, gid = os.getpid(), os.geteuid(), os.getegid()

    def prepare() -> None:
        if disguise is not None and disguise.kind == "namespace":
            _enter_namespace(disguise, uid, gid)
        elif disguise is not None:
            _become(disguise)
        if _libc is not None:
            # After the change of user, which would clear it.
            _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    return prepare


def _enter_namespace(disguise: Disguise, uid: int, gid: int) -> None:
    if _libc is None or _libc.unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{disguise.uid} {uid} 1")
    _write("/proc/self/gid_map", f"{disguise.gid} {gid} 1")


def _write(path: str, content: str) -> None:
    target = os.open(path, os.O_WRONLY)
    os.write(target, content.encode())
    os.close(target)


def _become(disguise: Disguise) -> None:
    if _libc is not None:
        _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(disguise.gid)
    os.setuid(disguise.uid)
    if _libc is not None:
        # Without it, the data and the binaries would have to be in folders that everyone may read. If it is not
        # granted, they do have to, and the server's own message says which path it could not open.
        mask = 1 << _CAP_DAC_OVERRIDE
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        _libc.capset(header, (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0))
        _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def _watch_over(process: "subprocess.Popen[bytes]", death_signal: signal.Signals) -> None:
    try:
        _start_watchdog(process.pid, death_signal)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _start_watchdog(pid: int, death_signal: signal.Signals) -> None:
    """If the kernel has no death signals: a process that sees our end of a pipe close, and then signals the child."""
    # Through a shell that exits immediately, so that we need not wait for the watchdog.
    subprocess.run(
        ["/bin/sh", "-c", '"$@" <&0 &', "sh", sys.executable, "-I", "-c", _WATCHDOG, str(pid), str(int(death_signal))],
        stdin=_lifeline()[0],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=True,
    )


@cache
def _lifeline() -> tuple[int, int]:
    """A pipe whose write end only we hold, until we exit."""
    return os.pipe()
