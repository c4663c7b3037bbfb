"""The cases of a client that is written in Python: each is a function, and one line of JSON tells how it ended.

It is run by the interpreter of the client's environment, which has neither pytest nor RunGPT.
"""

import asyncio
import inspect
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

BASE_URL = os.environ["BASE_URL"]
"""Address of the server's OpenAI API, with `/v1`."""
MODEL = os.environ["MODEL"]
KEY = "unused"
PARIS = "What is the capital of France?"
CITY_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
"""A function for clients that take schemas; the model's call of it is enforced and short."""

_CASES: dict[str, Callable[[], Any]] = {}


def case(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Add a function, which may be async, to the cases. It raises where the client does not get what it should."""

    def add(function: Callable[[], Any]) -> Callable[[], Any]:
        _CASES[name] = function
        return function

    return add


def run() -> None:
    """Run each case, and print a line of JSON for it: its name, and the error or null."""
    chosen = sys.argv[1:] or _CASES
    for name in chosen:
        try:
            result = _CASES[name]()
            if inspect.isawaitable(result):
                asyncio.run(_wait(result))
            error = None
        except Exception:
            error = traceback.format_exc()
        print(json.dumps({"case": name, "error": error}), flush=True)


def program(name: str, *arguments: str, seconds: float = 300, **variables: str) -> str:
    """Run a program of the client's environment, and return its stdout. It must end well."""
    command = [os.path.normpath(os.path.join(os.environ["PROGRAMS"], name)), *arguments]
    ended = subprocess.run(
        command,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert ended.returncode == 0, f"{name} ended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


async def _wait(result: Any) -> None:
    await result
