"""A function that a model may call, as a request describes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from run_gpt.errors import InvalidRequest


@dataclass(frozen=True)
class Function:
    """A function: its name, what it does, and the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    """The schema of an object, in the order that the request gave; None: any object."""
    strict: bool | None = None

    def as_tool(self) -> dict[str, Any]:
        """As chat templates take it; some read each of the keys without asking whether it is there."""
        function = {"name": self.name, "description": self.description or "", "parameters": self.schema()}
        return {"type": "function", "function": function}

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the arguments. Raises InvalidRequest if it is not that of an object."""
        schema = dict(self.parameters or {})
        kind = schema.get("type", "object")
        if kind != "object":
            raise InvalidRequest(
                f"tools: parameters of {self.name!r} have type = {kind!r}: arguments are an object", param="tools"
            )
        return schema if "type" in schema else {"type": "object", **schema}
