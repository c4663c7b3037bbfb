"""Fields of Anthropic's API beside those of the schemas, each with the reason; docs/messages.md is made from it."""

from typing import Any

from run_gpt.api.field_tables import HOSTED, NOT_STORED, OF_A_CLIENT, SENT_BACK, TEXT_ONLY
from run_gpt.api.fields import Entry, Table, Word

CACHE = {"cache_control": Entry("prefixes are reused while there is room")}


def _format(value: Any) -> dict[str, Any]:
    return {"format": value}


REQUEST = Table(
    refused={
        "container": Entry(HOSTED),
        "fallbacks": Entry("one model answers"),
        "mcp_servers": Entry(HOSTED, ([],)),
    },
    hints={
        **CACHE,
        "betas": Entry("nothing is enabled by a name here"),
        "context_management": Entry("the whole conversation is in the prompt"),
        "diagnostics": Entry(OF_A_CLIENT),
        "inference_geo": Entry("this server stands where it stands"),
        "service_tier": Entry("there is one tier", ("auto", "standard_only")),
        "speed": Entry("there is one speed", ("standard",)),
        "user_profile_id": Entry(OF_A_CLIENT),
    },
    words={"output_format": Word("output_config", "its `format`", _format)},
)
TEXT = Table(place="messages.content.", hints={**CACHE, "citations": Entry(SENT_BACK, (None, []))})
TOOL_USE = Table(
    place="messages.content.", hints={**CACHE, **dict.fromkeys(("caller", "toolset_name"), Entry(SENT_BACK))}
)
TOOL_RESULT = Table(
    place="messages.content.",
    hints={**CACHE, "is_error": Entry("the text says so", (False,)), "toolset_name": Entry(SENT_BACK)},
)
THINKING = Table(place="messages.content.", hints=CACHE)
TOOL = Table(
    place="tools.",
    hints={
        **CACHE,
        "allowed_callers": Entry("the client makes the calls", (["direct"],)),
        "defer_loading": Entry("all tools are in the prompt", (False,)),
        "eager_input_streaming": Entry("arguments come as they are made", (True,)),
        "input_examples": Entry("the model reads the schema"),
    },
)
OUTPUT = Table(place="output_config.", hints={"task_budget": Entry("`max_tokens` bounds an answer")})
OPTIONS = Table(place="thinking.", hints={"display": Entry("the whole thinking is shown", ("summarized",))})

LEFT_OUT_BLOCKS = ("redacted_thinking",)
"""Types of blocks that are taken and left out: nothing here can read them."""
REFUSED_BLOCKS = {
    "image": TEXT_ONLY,
    "document": TEXT_ONLY,
    "search_result": "write it as a text",
    "container_upload": NOT_STORED,
}
"""Types of blocks that are refused, with the reason."""
