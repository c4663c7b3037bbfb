"""Processes of a server on this machine, and the processor time of each. Read from /proc, so only on Linux."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from run_gpt.client.endpoint import Endpoint
from run_gpt.errors import SetupError

PROC = Path("/proc")
_LISTENS = "0A"  # state of a listening socket in /proc/net/tcp
_SUPERVISOR = "supervisor"


@dataclass(frozen=True)
class Process:
    """State of a process when it was read."""

    pid: int
    parent: int
    seconds: float
    """Processor time of all its threads since its start."""


class ServerProcesses:
    """A process and all its descendants."""

    def __init__(self, root: int):
        self._root = root

    def seconds(self) -> dict[int, float]:
        """Return the processor seconds of each process so far, by its id."""
        found = {process.pid: process for process in _all()}
        return {pid: process.seconds for pid, process in found.items() if self._root in _line(pid, found)}

    def since(self, before: dict[int, float]) -> dict[str, float]:
        """Return the processor seconds of each process since `seconds` returned `before`, by its name."""
        used: dict[str, float] = {}
        for pid, seconds in self.seconds().items():
            name = _name(pid)
            used[name] = used.get(name, 0.0) + seconds - before.get(pid, 0.0)
        return dict(sorted(used.items()))


def find(endpoint: Endpoint, pid: int | None = None) -> ServerProcesses | None:
    """Find the processes of the server at the endpoint, or of the process `pid` and its descendants.

    Returns None for a server on another machine, or if its processes are not visible. Raises SetupError if there is no
    process `pid`.
    """
    if pid is not None:
        if (PROC / "self").exists() and not (PROC / str(pid)).exists():
            raise SetupError(f"--server-pid {pid}: there is no such process")
        return ServerProcesses(pid) if (PROC / "self").exists() else None
    if not is_local(endpoint) or (listener := _listener(endpoint.port)) is None:
        return None
    return ServerProcesses(_root_of(listener))


def find_own() -> ServerProcesses | None:
    """Return this process and its descendants; None if they are not visible."""
    return ServerProcesses(os.getpid()) if (PROC / "self").exists() else None


def is_local(endpoint: Endpoint) -> bool:
    """Return True for a loopback address, or the unspecified address, of this machine."""
    if endpoint.host == "localhost":
        return True
    try:
        address = ip_address(endpoint.host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _all() -> Iterator[Process]:
    ticks = os.sysconf("SC_CLK_TCK")
    for folder in PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        yield Process(int(folder.name), int(fields[1]), (int(fields[11]) + int(fields[12])) / ticks)


def _line(pid: int, found: dict[int, Process]) -> list[int]:
    """Return the ids of a process, its parent, its grandparent, and so on."""
    line = []
    while pid in found and pid not in line:
        line.append(pid)
        pid = found[pid].parent
    return line


def _listener(port: int) -> int | None:
    """Return the id of the process that listens on a port; None if it is not visible."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    return next((pid for pid in _holders(inodes)), None)


def _holders(inodes: set[str]) -> Iterator[int]:
    for folder in PROC.glob("[0-9]*") if inodes else ():
        try:
            if any(os.readlink(file) in inodes for file in (folder / "fd").iterdir()):
                yield int(folder.name)
        except OSError:
            continue  # it has ended, or belongs to someone else


def _root_of(pid: int) -> int:
    """Return the oldest ancestor that runs the same program: for a worker, this is its supervisor.

    This process and its ancestors are not part of a server, even if one of them has started it.
    """
    found = {process.pid: process for process in _all()}
    ours = _line(os.getpid(), found)
    program = _program(pid)
    for ancestor in _line(pid, found)[1:]:
        same = program is not None and _program(ancestor) == program
        # The program that started `rungpt serve` is not part of it, even if it is a Python program too.
        if not same or ancestor in ours or _name(pid) == _SUPERVISOR:
            break
        pid = ancestor
    return pid


def _program(pid: int) -> str | None:
    try:
        return os.readlink(PROC / str(pid) / "exe")
    except OSError:
        return None


def _name(pid: int) -> str:
    """Name a process by its command line: `gateway`, `executor 0`, `supervisor`, else its program or module."""
    try:
        command = [part for part in (PROC / str(pid) / "cmdline").read_text().split("\0") if part]
        short = (PROC / str(pid) / "comm").read_text().strip()
    except OSError:
        return "ended"
    if not command:
        return short
    if "run_gpt.flows.pod" in command:
        return " ".join(command[command.index("run_gpt.flows.pod") + 1 :])
    if "serve" in command and any(Path(part).name in ("rungpt", "run_gpt.cli") for part in command):
        return _SUPERVISOR
    if not Path(command[0]).name.startswith("python"):
        return Path(command[0]).name
    if "-m" in command[1:-1]:
        return command[command.index("-m") + 1]
    return next((Path(part).name for part in command[1:2] if not part.startswith("-")), short)
