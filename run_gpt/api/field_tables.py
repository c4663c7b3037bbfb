"""The table of fields beside those of the schemas, each with the reason; docs/openai.md is made from it.

A field is refused if it would change the answer and cannot be honoured. A hint changes no answer: it is taken, and
named in the answer's header. A word is another server's name for a field here.
"""

from typing import Any

from run_gpt.api.fields import Entry, Table, Word
from run_gpt.api.values import shown

TEXT_ONLY = "models here read and write text only"
NOT_STORED = "nothing is stored here"
HOSTED = "there are no hosted tools here"
AT_ONCE = "every request is answered at once"
OWN_GRAMMAR = "say it as `response_format`, or as tools"
OTHER_SAMPLING = "no sampling here is like this"
NO_SAMPLING = "a parameter of a sampling that is off"
WHILE_ROOM = "prefixes are reused while there is room"
OF_A_CLIENT = "bookkeeping of the client"
SENT_BACK = "a part of an answer that the model does not read"


def _always(value: Any, why: str) -> Entry:
    """Return the entry of a refused field that may have one value."""
    return Entry(why, (value,))


def _schema(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict | str):
        raise ValueError("this must be a JSON schema")
    return {"type": "json_schema", "json_schema": {"schema": value}}


def _regex(value: Any) -> dict[str, Any]:
    return {"type": "regex", "regex": value}


def _choice(value: Any) -> dict[str, Any]:
    return {"type": "choice", "choice": value}


_FORMS = {"json": _schema, "regex": _regex, "choice": _choice}
_STRICTNESS = ("disable_fallback", "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")


def _structured(value: Any) -> dict[str, Any] | None:
    """Return the response_format of vLLM's `structured_outputs`."""
    if not isinstance(value, dict):
        raise ValueError("this must be an object")
    given = {name: one for name, one in value.items() if one not in (None, False)}
    if given.pop("json_object", None):
        given["json_object"] = True
    for name in _STRICTNESS[:2]:
        given.pop(name, None)
    if len(given) != 1:
        raise ValueError("this must have one of json, regex, choice, json_object and nothing else")
    ((name, one),) = given.items()
    if name == "json_object":
        return {"type": "json_object"}
    if name not in _FORMS:
        raise ValueError(f"{shown(name)} is not supported here: {OWN_GRAMMAR}")
    return _FORMS[name](one)


def _thinking(value: Any) -> dict[str, Any]:
    """Return the template's values for Ollama's `think`: true, false, or an effort."""
    if isinstance(value, bool):
        return {"enable_thinking": value}
    if value not in ("low", "medium", "high"):
        raise ValueError("this must be true, false, low, medium or high")
    return effort_values(value)


def effort_values(value: Any) -> dict[str, Any]:
    """Return the template's values for an effort of OpenAI's. Raises ValueError for an unknown one."""
    if value not in EFFORTS:
        raise ValueError(f"this must be one of {', '.join(EFFORTS)}")
    return {"enable_thinking": False} if value == "none" else {"reasoning_effort": value}


EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

_REFUSED = {
    **dict.fromkeys(("guided_grammar", "ebnf", "grammar", "structural_tag"), Entry(OWN_GRAMMAR, ("",))),
    "guided_whitespace_pattern": Entry("white space between tokens of JSON is short here"),
    "allowed_token_ids": Entry("say it by `logit_bias`"),
    "bad_words": Entry("say it by `logit_bias`", ([],)),
    "detokenize": _always(True, "an answer here is text"),
    "skip_special_tokens": _always(True, "special tokens are no part of an answer here"),
    "spaces_between_special_tokens": Entry("special tokens are no part of an answer here", (True, False)),
    "include_stop_str_in_output": _always(False, "the text that ends an answer is no part of it here"),
    "no_stop_trim": _always(False, "the text that ends an answer is no part of it here"),
    "stop_regex": Entry("give texts as `stop`"),
    "logits_processors": Entry("no code comes with a request", ([],)),
    "prompt_logprobs": Entry("`echo` of completions gives them"),
    "return_hidden_states": _always(False, "`/v1/embeddings` gives them"),
    "return_token_ids": _always(False, "`/tokenize` gives them"),
    "return_tokens_as_token_ids": _always(False, "`logprobs` has the bytes of each token"),
    "truncate_prompt_tokens": Entry("too long a prompt is a 400: shorten it"),
    "use_beam_search": _always(False, "`/generate` has `num_beams`"),
    "length_penalty": Entry("`/generate` has it, for beam search", (1, 1.0)),
    "early_stopping": _always(False, "`/generate` has `num_beams`"),
    "typical_p": Entry(OTHER_SAMPLING, (1, 1.0)),
    "typ_p": Entry(OTHER_SAMPLING, (1, 1.0)),
    "top_a": Entry(OTHER_SAMPLING, (0, 0.0)),
    "tfs_z": Entry(OTHER_SAMPLING, (1, 1.0)),
    "mirostat": Entry(OTHER_SAMPLING, (0,)),
    "xtc_probability": Entry(OTHER_SAMPLING, (0, 0.0)),
    "dynatemp_range": Entry(OTHER_SAMPLING, (0, 0.0)),
    "dry_multiplier": Entry(OTHER_SAMPLING, (0, 0.0)),
    "repeat_last_n": Entry("penalties count the whole context", (-1,)),
    "samplers": Entry("their order is fixed"),
    "n_probs": Entry("this is `logprobs` here", (0,)),
    "options": Entry("give its members as fields of the request", ({},)),
}
_HINTS = {
    "client_metadata": Entry(OF_A_CLIENT),
    "metadata": Entry(NOT_STORED),
    "guided_decoding_backend": Entry("there is one"),
    "keep_alive": Entry("`--unload-after` says it"),
    "prediction": Entry("speculation here drafts from the prompt"),
    "priority": Entry("requests are served in the order in which they come", (0,)),
    "prompt_cache_options": Entry(WHILE_ROOM),
    "prompt_cache_retention": Entry(WHILE_ROOM),
    "provider": Entry("there is one"),
    "request_id": Entry("the header X-Request-Id gives a name"),
    "service_tier": Entry("all requests are served alike", ("auto", "default")),
    "store": Entry(NOT_STORED, (False,)),
    "verbosity": Entry("no model here has it: say it in the messages", ("medium",)),
    **dict.fromkeys(
        ("mirostat_tau", "mirostat_eta", "xtc_threshold", "dynatemp_exponent", "dry_base", "dry_allowed_length"),
        Entry(NO_SAMPLING),
    ),
    **dict.fromkeys(("dry_penalty_last_n", "dry_sequence_breakers"), Entry(NO_SAMPLING)),
    "id_slot": Entry("the engine chooses", (-1,)),
    "timings_per_token": Entry("`timings` gives those of the answer", (False,)),
    "return_progress": Entry("a stream sends comments meanwhile", (False,)),
}
_WORDS = {
    "guided_json": Word("response_format", "its JSON schema", _schema),
    "guided_regex": Word("response_format", "its regular expression", _regex),
    "guided_choice": Word("response_format", "its choices", _choice),
    "json_schema": Word("response_format", "its JSON schema", _schema),
    "regex": Word("response_format", "its regular expression", _regex),
    "structured_outputs": Word("response_format", "its `json`, `regex`, `choice` or `json_object`", _structured),
    "max_new_tokens": Word("max_tokens"),
    "n_predict": Word("max_tokens"),
    "repeat_penalty": Word("repetition_penalty"),
}

COMPLETION = Table(
    refused={
        **_REFUSED,
        "add_special_tokens": _always(True, "give token ids as the prompt"),
    },
    hints=_HINTS,
    words=_WORDS,
)
CHAT = Table(
    refused={
        **_REFUSED,
        "add_special_tokens": _always(False, "a chat's template writes them"),
        "audio": Entry(TEXT_ONLY),
        "best_of": Entry("completions have it", (1,)),
        "function_call": Entry("this is `tool_choice` now"),
        "functions": Entry("this is `tools` now"),
        "include_reasoning": _always(True, "reasoning is a field of its own in the answer"),
        "modalities": Entry(TEXT_ONLY, (["text"],)),
        "moderation": Entry("nothing is moderated here"),
        "reasoning_format": Entry("reasoning is a field of its own in the answer", ("auto", "deepseek")),
        "separate_reasoning": _always(True, "reasoning is a field of its own in the answer"),
        "stream_reasoning": _always(True, "reasoning comes as it is made"),
        "web_search_options": Entry(HOSTED),
    },
    hints={name: entry for name, entry in _HINTS.items() if name != "metadata"},
    words={
        **_WORDS,
        "enable_thinking": Word("chat_template_kwargs", "its value of this name", lambda on: {"enable_thinking": on}),
        "documents": Word("chat_template_kwargs", "its value of this name", lambda them: {"documents": them}),
        "reasoning_effort": Word("chat_template_kwargs", "`none`: `enable_thinking` is false", effort_values),
        "thinking_budget": Word("max_reasoning_tokens"),
        "thinking_token_budget": Word("max_reasoning_tokens"),
        "think": Word("chat_template_kwargs", "`enable_thinking`, or `reasoning_effort`", _thinking),
    },
)
RESPONSE = Table(
    refused={
        "access_programs": Entry("there are none here"),
        "background": _always(False, AT_ONCE),
        "background_options": Entry(AT_ONCE),
        "context_management": Entry("shorten the input yourself"),
        "conversation": Entry(NOT_STORED),
        "image": Entry(TEXT_ONLY),
        "moderation": Entry("nothing is moderated here"),
        "previous_response_id": Entry(f"{NOT_STORED}: send the whole conversation as input"),
        "prompt": Entry("there are no prompt templates here"),
    },
    hints={
        **{
            name: _HINTS[name]
            for name in ("client_metadata", "prompt_cache_options", "prompt_cache_retention", "service_tier", "store")
        },
        "max_tool_calls": Entry(HOSTED),
        "truncation": Entry("too long an input is a 400: nothing of it is dropped", ("disabled",)),
    },
)
EMBEDDING = Table(
    refused={
        "dimensions": Entry("a vector has as many numbers as the model's hidden state"),
        "add_special_tokens": _always(True, "give token ids as the input"),
        "truncate_prompt_tokens": Entry("too long an input is a 400: shorten it"),
    },
    hints={name: _HINTS[name] for name in ("client_metadata", "keep_alive", "metadata", "priority", "request_id")},
)
STREAM_OPTIONS = Table(
    place="stream_options.",
    hints={"include_obfuscation": Entry("nothing is padded here", (False,))},
)

_CACHE = {name: Entry(WHILE_ROOM) for name in ("cache_control", "prompt_cache_breakpoint")}
_IN_ANSWERS = {
    name: Entry(SENT_BACK)
    for name in (
        *("id", "index", "status", "object", "type", "created_at", "metadata", "phase", "annotations", "logprobs"),
        *("parsed", "parsed_arguments", "provider_specific_fields", "extra_content"),
    )
}
MESSAGE = Table(
    place="messages.",
    refused={
        "audio": Entry(TEXT_ONLY),
        "function_call": Entry("this is `tool_calls` now"),
        "images": Entry(TEXT_ONLY, ([],)),
        "prefix": _always(False, "this is `continue_final_message` here"),
    },
    hints={
        **_CACHE,
        **_IN_ANSWERS,
        "refusal": Entry("the message has a content beside it"),
        "finish_reason": Entry(SENT_BACK),
        "reasoning_details": Entry("the model reads `reasoning_content`"),
        "thinking_blocks": Entry("the model reads `reasoning_content`"),
    },
    words={"reasoning": Word("reasoning_content"), "thinking": Word("reasoning_content")},
)
_OF_PARTS = {**_CACHE, **_IN_ANSWERS, **dict.fromkeys(("citations", "refusal", "role", "text"), Entry(SENT_BACK))}
PART = Table(place="messages.content.", hints=_OF_PARTS)
CALL = Table(
    place="messages.tool_calls.",
    refused={"custom": Entry("there are no custom tools here")},
    hints=_CACHE | _IN_ANSWERS,
)
FUNCTION_CALL = Table(place="messages.tool_calls.function.", hints=_IN_ANSWERS)

_OF_TOOLS = {
    **_CACHE,
    "allowed_callers": Entry(HOSTED),
    "async": Entry("the client makes the calls"),
    "defer_loading": Entry("all tools are in the prompt"),
    "eager_input_streaming": Entry("arguments come as they are made"),
    "output_schema": Entry("the model sees results as they are"),
}
TOOL = Table(place="tools.", hints={**_OF_TOOLS, "id": Entry(OF_A_CLIENT)})
FUNCTION = Table(place="tools.function.", hints=_OF_TOOLS)
RESPONSE_TOOL = Table(place="tools.", hints=_OF_TOOLS)
TEXT_OPTIONS = Table(place="text.", hints={"verbosity": _HINTS["verbosity"]})
REASONING = Table(
    place="reasoning.",
    hints={
        name: Entry(why)
        for name, why in (
            ("context", "the model's template decides"),
            ("generate_summary", "the whole reasoning is given"),
            ("mode", "there is one"),
            ("summary", "the whole reasoning is given"),
        )
    },
)
_OF_ITEMS = {
    **_CACHE,
    "async": Entry("the client makes the calls"),
    "async_": Entry("the client makes the calls"),  # openai-python's name of it
    "caller": Entry(HOSTED),
    "created_by": Entry(SENT_BACK),
    "metadata": Entry(SENT_BACK),
    "name": Entry("the call has it"),
    "namespace": Entry(SENT_BACK),
    "parsed_arguments": Entry(SENT_BACK),
    "phase": Entry(SENT_BACK),
}
ITEM = Table(place="input.", hints=_OF_ITEMS)
ITEM_PART = Table(place="input.content.", hints=_OF_PARTS)
REASONING_ITEM = Table(
    place="input.",
    hints={
        **_OF_ITEMS,
        "encrypted_content": Entry("nothing is encrypted here: the model reads `content`"),
        "summary": Entry("the model reads `content`"),
    },
)

LEFT_OUT_TOOLS = (
    *("apply_patch", "code_interpreter", "computer", "computer_use_preview", "custom", "file_search"),
    *("image_generation", "local_shell", "mcp", "namespace", "programmatic_tool_calling", "shell", "tool_search"),
    *("web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"),
)
"""Types of tools that are left out of a request, and named in the header: a server would have to have them."""
LEFT_OUT_INCLUDES = (
    *("code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results"),
    *("message.input_image.image_url", "reasoning.encrypted_content", "web_search_call.action.sources"),
    "web_search_call.results",
)
"""Values of `include` that are left out: there is nothing of the kind."""
