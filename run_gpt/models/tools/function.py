"""Functions that a model may call, as requests describe them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from run_gpt.errors import InvalidRequest


@dataclass(frozen=True)
class Function:
    """Function: its name, its description, and the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    """JSON schema of an object, in the order of the request; None: any object."""
    strict: bool | None = None

    def as_tool(self) -> dict[str, Any]:
        """Return the function in the form of chat templates, with all keys, since some templates require each key."""
        function = {"name": self.name, "description": self.description or "", "parameters": self.schema()}
        return {"type": "function", "function": function}

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the arguments. Raises InvalidRequest if it is not the schema of an object."""
        schema = dict(self.parameters or {})
        kind = schema.get("type", "object")
        if kind != "object":
            raise InvalidRequest(
                f"tools: parameters of {self.name!r} have type = {kind!r}: arguments are an object", param="tools"
            )
        return schema if "type" in schema else {"type": "object", **schema}


def object_of(text: str) -> dict[str, Any] | None:
    """Return the JSON object of a text of arguments; None if it is none, as one that was cut off is.

    An empty text means no arguments.
    """
    try:
        value = json.loads(text or "{}")
        json.dumps(value, ensure_ascii=False).encode()  # half a pair of surrogates is not Unicode
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
