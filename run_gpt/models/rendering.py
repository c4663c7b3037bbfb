"""Rendering of a chat by a template, which is a program that came with a model: it may fail, loop or write too much."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from run_gpt.errors import InvalidRequest

MAX_SECONDS = 3.0
"""Time that a template may take. One for a long chat takes milliseconds."""
MAX_CHARACTERS = 16 * 1024 * 1024
"""Largest text of a chat."""


class _TimeUp(BaseException):
    """Raised in a thread whose time is up. It is no Exception, so that no library takes it for its own."""


def render(tokenizer: Any, turns: list[dict[str, Any]], jinja: str | None, **options: Any) -> str:
    """Return a chat as one text, by the template `jinja`, else by the tokenizer's own.

    Raises InvalidRequest with the template's words if it fails, in any way, and if it passes a limit.
    """
    says = "messages: this model's chat template"
    try:
        with _limited(MAX_SECONDS):
            text = str(
                tokenizer.apply_chat_template(
                    turns, chat_template=jinja, add_generation_prompt=True, tokenize=False, **options
                )
            )
    except _TimeUp:
        message = f"{says} takes more than {MAX_SECONDS:g} s: shorten the chat, or serve another (--chat-template)"
        raise InvalidRequest(message, param="messages") from None
    except Exception as error:
        raise InvalidRequest(f"{says} says: {_words(error)}", param="messages") from error
    if len(text) > MAX_CHARACTERS:
        message = f"{says} makes a text of {len(text)} characters, the limit is {MAX_CHARACTERS}: shorten the chat"
        raise InvalidRequest(message, param="messages")
    return text


def _words(error: Exception) -> str:
    """Return a template's reason in one line; for an error that it did not raise itself, with the error's kind."""
    from jinja2 import TemplateError

    reason = " ".join(str(error).split())[:500]
    return reason if isinstance(error, TemplateError) and reason else f"{type(error).__name__}: {reason}"


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise _TimeUp in this thread if the block takes longer. A call of C code is interrupted only at its end."""
    thread, changing, running = threading.get_ident(), threading.Lock(), True

    def stop() -> None:
        with changing:
            if running:
                _raise_in(thread, ctypes.py_object(_TimeUp))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with changing:
            running = False
        _raise_in(thread, None)  # an error that is on its way must not come after the block


def _raise_in(thread: int, error: Any) -> None:
    """Let a thread raise an error at its next step; None takes back one that it has not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
