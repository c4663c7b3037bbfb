"""Program of the process that compiles and runs chat templates: a stranger's program, so its memory is limited.

It runs by its path and imports nothing of RunGPT, so that it starts in a moment. `rendering.py` starts it, limits its
time, and kills it. Each message is a length of 8 bytes and a JSON object. The environment of templates is
transformers' (`utils/chat_template_utils.py`); a test compares the two.
"""

import json
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_REASONING = ("reasoning_content", "thinking", "reasoning")


class _Generation(Extension):
    """`{% generation %}`, which marks an answer for training: its body is rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """See Extension."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


class _Dict:
    """`dict` without attributes that lead elsewhere."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        """See dict."""
        return dict.fromkeys(*values)


class _Namespace(Namespace):
    """`namespace` without attributes that begin with an underscore."""

    def __init__(*values: Any, **named: Any) -> None:  # `namespace(self=...)` works
        own, given = values[0], dict(*values[1:], **named)
        for name in given:
            _check_name(name)
        Namespace.__init__(own, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore: {name!r}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: Any = False):  # type: ignore[no-untyped-def]
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


@lru_cache(16)
def _compiled(text: str) -> Any:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(text)


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without null fields, its reasoning under each name that templates read."""
    given = {name: value for name, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the `text` of a chat, its length if it is too long, or the `error`, in words."""
    try:
        template = _compiled(asked["template"])
        if asked.get("messages") is None:
            return {"text": ""}
        messages = [_message(message) for message in asked["messages"]]
        given = {"tools": asked["tools"], "add_generation_prompt": asked["add_generation_prompt"]}
        text = template.render({"documents": None, **asked["values"], **asked["tokens"], **given, "messages": messages})
    except MemoryError:
        return {"memory": True}
    except Exception as error:
        line = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
        reason = " ".join(str(error).split())[:500]
        own = isinstance(error, TemplateError) and reason
        return {"error": reason if own else f"{type(error).__name__}: {reason}", "line": line}
    return {"text": text} if len(text) <= asked["most"] else {"characters": len(text)}


def _read(stream: BinaryIO) -> dict[str, Any] | None:
    head = stream.read(8)
    asked: dict[str, Any] | None = json.loads(stream.read(int.from_bytes(head))) if len(head) == 8 else None
    return asked


def main() -> None:
    """Answer one message after the other until stdin ends. The argument: the bytes of memory that it may take."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the process that holds this one's stdin
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    try:
        while (asked := _read(stdin)) is not None:
            told = json.dumps(answer(asked)).encode()
            stdout.write(len(told).to_bytes(8) + told)
            stdout.flush()
    except (MemoryError, BrokenPipeError):
        sys.exit(1)  # the other side sees the end


if __name__ == "__main__":
    main()
