"""Trials of grammars in a separate process, where excessive time or memory, or a crash, does no harm.

llguidance bounds its work for each token, but not all of its compilation: the intersection of many patterns (`allOf`)
and a large `multipleOf` take minutes, and a thread cannot be ended. A process can be ended: it lives as long as its
stdin, and its CPU time and memory are limited. The grammar is compiled there as it will be here, but for a vocabulary
of bytes.
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from run_gpt.errors import InternalError

DONE = b"done\n"
START_SECONDS = 60.0
CPU_SECONDS = 2
"""CPU time for each grammar, in seconds: a minimum, since the system counts whole seconds."""
WALL_SECONDS = 8.0
"""Wall time for each grammar, in seconds: more than the CPU time, since a busy machine gives a process less of it."""
MEMORY = 160 * 2**20
"""Address space of the process in bytes, Python's own 30 MB or so included."""
NICENESS = 10
"""Niceness of the process: running requests have priority over those in preparation."""


def limits() -> LLParserLimits:
    """Return llguidance's limits, for a trial and for the compilation after it.

    They are its defaults, except for the number of states, which take about 2 kB each.
    """
    return LLParserLimits(verbose_errors=False, max_lexer_states=50_000)


class Trial:
    """Processes that try grammars, one for each thread that asks at the same time; each starts when it is needed."""

    def __init__(self, special: Sequence[str], vocabulary: int = 0, wall_seconds: float = WALL_SECONDS):
        """Prepare trials. A grammar may use the names in `special`, the tokenizer's special tokens, and any id below
        `vocabulary`."""
        self._tokens = list(special), vocabulary
        self._wall_seconds = wall_seconds
        self._all: set[_Process] = set()
        self._idle: list[_Process] = []
        self._closed = False

    def passes(self, grammar: str) -> bool:
        """Return True if the library finishes with the grammar within the limits, even with an error. Blocks.

        Raises InternalError if no process can be started.
        """
        process = self._take()
        done = False
        try:
            done = process.ask(grammar, self._wall_seconds)
        finally:
            if done:
                self._idle.append(process)
            else:
                self._end(process)
            if self._closed:
                self.close()
        return done

    def close(self) -> None:
        """End the processes; grammars that are being tried do not pass."""
        self._closed = True
        for process in list(self._all):
            process.kill()
        while (idle := self._pop()) is not None:
            self._end(idle)

    def _take(self) -> "_Process":
        while (idle := self._pop()) is not None:
            if idle.lives:
                return idle
            self._end(idle)
        process = _Process()
        self._all.add(process)
        if self._closed or not process.ask(self._tokens, START_SECONDS):
            self._end(process)
            raise InternalError("the process that tries grammars did not start; its own words are in the server's log")
        return process

    def _pop(self) -> "_Process | None":
        with suppress(IndexError):  # other threads take processes as well
            return self._idle.pop()
        return None

    def _end(self, process: "_Process") -> None:
        process.end()
        self._all.discard(process)


class _Process:
    """Handle of one process that tries grammars, for the process that started it."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "run_gpt.models.trial"]
        self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._stdin, self._stdout = self._popen.stdin, self._popen.stdout

    @property
    def lives(self) -> bool:
        return self._popen.poll() is None

    def ask(self, line: object, seconds: float) -> bool:
        """Send a line and return True if the process answered within `seconds`."""
        with suppress(OSError):  # the process has ended
            self._stdin.write(json.dumps(line).encode() + b"\n")
            self._stdin.flush()
            answer = select.poll()  # not select.select, which handles only the first 1024 files of a process
            answer.register(self._stdout, select.POLLIN)
            return bool(answer.poll(seconds * 1000)) and self._stdout.readline() == DONE
        return False

    def kill(self) -> None:
        self._popen.kill()

    def end(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self._stdout.close()
        with suppress(OSError):  # data that was not flushed
            self._stdin.close()


class _Bytes:
    """Source of llguidance's tokenizer: a token for each byte, an end, special tokens by name, empty ones."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, special: Sequence[str], vocabulary: int):
        self.tokens = [bytes([byte]) for byte in range(256)] + [name.encode() for name in ("</s>", *special)]
        self.eos_token_id = 256
        self.special_token_ids = list(range(256, len(self.tokens)))
        self.tokens += [b""] * (vocabulary - len(self.tokens))  # a grammar with an id beyond them is not compiled

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _serve() -> None:
    """Serve trials in the process: read the tokens, then one grammar per line, and answer each when it is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the process that holds this one's stdin
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tokenizer = LLTokenizer(_Bytes(*json.loads(sys.stdin.readline())), slices=[])
    _answer()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # hides messages about limits, which are expected
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS, hard))
        matcher = LLMatcher(tokenizer, json.loads(line), log_level=0, limits=limits())
        if not matcher.is_error():
            matcher.compute_bitmask()
        _answer()


def _answer() -> None:
    sys.stdout.buffer.write(DONE)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
