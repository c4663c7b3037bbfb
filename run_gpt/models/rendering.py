"""Rendering of a chat by a template, which is a program that came with a model, or with a request.

It may fail, loop, or take too much memory in one step. So it runs in a process of its own, whose memory is limited, and
which is killed when its time is up: nothing that a template does can take more.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from run_gpt.errors import InternalError, InvalidRequest
from run_gpt.models.template_options import TemplateOptions

MAX_SECONDS = 3.0
"""Time that a template may take. One for a long chat takes milliseconds."""
MAX_CHARACTERS = 16 * 1024 * 1024
"""Largest text of a chat."""
MAX_MEMORY = 512 * 1024 * 1024
"""Address space of the process in bytes, Python's own 50 MB or so included."""
AT_ONCE = 4
"""Number of templates that run at the same time; others wait for one of them."""
_START_SECONDS = 60.0
_KEPT = 2
_PROGRAM = str(Path(__file__).with_name("template_process.py"))


def render(
    tokenizer: Any,
    turns: list[dict[str, Any]],
    jinja: str | None,
    *,
    tools: list[dict[str, Any]] | None = None,
    options: TemplateOptions = TemplateOptions(),  # noqa: B008  (frozen)
) -> str:
    """Return a chat as one text, by the template `jinja`, else by the tokenizer's own. Blocks.

    Raises InvalidRequest with the template's words if it fails, in any way, and if it passes a
    limit.
    """
    template = jinja if jinja is not None else tokenizer.get_chat_template(None, tools)
    tokens = {name: _plain(value) for name, value in getattr(tokenizer, "special_tokens_map", {}).items()}
    given = {"values": options.values, "add_generation_prompt": options.begins_answer}
    told = _ask(
        {"template": template, "messages": turns, "tools": tools, "tokens": tokens, "most": MAX_CHARACTERS, **given}
    )
    if "text" in told:
        return str(told["text"])
    raise InvalidRequest(f"messages: this model's chat template {_fault(told)}", param="messages")


def compile_fault(template: str) -> str | None:
    """Return the reason in one line for which a text is no template, or None."""
    told = _ask({"template": template})
    return None if "text" in told else f"{told.get('line', '')}{told.get('error') or _fault(told)}"


def _fault(told: dict[str, Any]) -> str:
    if "seconds" in told:
        return f"takes more than {told['seconds']:g} s: shorten the chat, or serve another (--chat-template)"
    if "characters" in told:
        return f"makes a text of {told['characters']} characters, the limit is {MAX_CHARACTERS}: shorten the chat"
    if "error" in told:
        return f"says: {told['error']}"
    return (
        f"takes more than {MAX_MEMORY // 1024**2} MiB of memory: shorten the chat, or serve another (--chat-template)"
    )


def _plain(value: Any) -> Any:
    """Return special tokens as text."""
    return [str(one) for one in value] if isinstance(value, list | tuple) else str(value)


class _Process:
    """Handle of one process that runs templates."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", _PROGRAM, str(MAX_MEMORY)]
        self._popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._stdin, self._stdout = self._popen.stdin, self._popen.stdout
        os.set_blocking(self._stdin.fileno(), False)

    @property
    def lives(self) -> bool:
        return self._popen.poll() is None

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """Return the answer; None if the process ended without one. Raises _TimeUp after `seconds`."""
        data, until = json.dumps(message).encode(), time.monotonic() + seconds
        with suppress(OSError):  # the process has ended
            self._write(len(data).to_bytes(8) + data, until)
            head = self._read(8, until)
            body = self._read(int.from_bytes(head), until)
            if len(head) == 8 and body:
                told: dict[str, Any] = json.loads(body)
                return told
        return None

    def end(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self._stdout.close()
        with suppress(OSError):
            self._stdin.close()

    def _write(self, data: bytes, until: float) -> None:
        rest = memoryview(data)
        while rest:
            _wait(self._stdin, select.POLLOUT, until)
            rest = rest[self._stdin.write(rest) or 0 :]

    def _read(self, size: int, until: float) -> bytes:
        """Return `size` bytes, or fewer if the process has ended."""
        parts, left = [], size
        while left:
            _wait(self._stdout, select.POLLIN, until)
            if not (part := self._stdout.read(min(left, 1 << 20))):
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def _wait(stream: Any, event: int, until: float) -> None:
    ready = select.poll()  # not select.select, which handles only the first 1024 files of a process
    ready.register(stream, event)
    if not ready.poll(max(0.0, until - time.monotonic()) * 1000):
        raise _TimeUp


class _TimeUp(Exception):
    """The time of a template is up."""


_places = threading.Semaphore(AT_ONCE)
_idle: list[_Process] = []
_starting: list[_Process] = []


def start_process() -> None:
    """Start a process for the next template, unless one is there. Does not wait: it starts beside the load of a model.

    An error is raised by the first rendering.
    """
    if not _idle and not _starting:
        with suppress(OSError):
            _starting.append(_Process())


def _ask(message: dict[str, Any]) -> dict[str, Any]:
    """Return a process's answer; that of one that ended is empty. Raises InternalError if none can be started."""
    with _places:
        process = _take()
        try:
            told = process.ask(message, MAX_SECONDS)
        except _TimeUp:
            process.end()
            return {"seconds": MAX_SECONDS}
        except BaseException:
            process.end()
            raise
        if told is None or len(_idle) >= _KEPT:
            process.end()
        else:
            _idle.append(process)
        return told or {}


def _take() -> _Process:
    with suppress(IndexError):
        while True:
            process = _idle.pop()
            if process.lives:
                return process
            process.end()
    try:
        process = _started()
        if process.ask({"template": ""}, _START_SECONDS) is not None:
            return process
        process.end()
    except (OSError, _TimeUp) as error:
        raise InternalError(f"the process that renders chat templates did not start: {error}") from error
    raise InternalError("the process that renders chat templates did not start; its own words are in the server's log")


def _started() -> _Process:
    """Return the process that starts beside a load, or a new one."""
    with suppress(IndexError):
        return _starting.pop()
    return _Process()


def end_processes() -> None:
    """End the processes that wait for the next template. They end with this process, too."""
    for processes in (_idle, _starting):
        while processes:
            processes.pop().end()


atexit.register(end_processes)
