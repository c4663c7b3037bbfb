"""Tokenizers with the markers and chat templates of models that call functions, reduced to the parts for calls."""

import random
from collections.abc import Sequence
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
from families import copied_tokenizer
from tokenizers import AddedToken

from run_gpt.models.tools import ArgumentsPiece, CallPiece, Function, Piece, TextPiece, joined
from run_gpt.models.tools.formats import FORMATS, JSON, ToolFormat

# As Qwen 2.5 and Hermes write it.
HERMES = """
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}{{- '<tools>' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{% endfor %}
{{- '\\n</tools>\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>' }}
{{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' %}{{- '<|im_start|>assistant' }}
{%- if message.content %}{{- '\\n' + message.content }}{% endif %}
{%- for call in message.tool_calls %}{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{% endif %}
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

# As Mistral 7B v0.3: roles take turns, ids have 9 characters.
MISTRAL = """
{%- set seen = namespace(index=0) %}
{%- for message in messages if message.role != 'tool' and not message.tool_calls is defined %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- endfor %}{{ bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif -%}
[INST] {{ message.content }}[/INST]
{%- elif message.tool_calls is defined and message.tool_calls is not none %}{{ "[TOOL_CALLS] [" }}
{%- for call in message.tool_calls %}{{ (call.function | tojson)[:-1] }}
{%- if call.id | length != 9 %}{{ raise_exception('Tool call IDs should have length 9!') }}{% endif %}
{{- ', "id": "' + call.id + '"}' }}{% if not loop.last %}, {% endif %}{% endfor %}]{{ eos_token }}
{%- elif message.role == 'tool' %}
{%- if message.tool_call_id | length != 9 %}{{ raise_exception('Tool call IDs should have length 9!') }}{% endif -%}
[TOOL_RESULTS] {"content": {{ message.content }}, "call_id": "{{ message.tool_call_id }}"}[/TOOL_RESULTS]
{%- elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}
{%- else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}
{%- endfor %}"""

# As Mistral Small 3.2 and Devstral.
MISTRAL_ARGS = """
{%- for message in messages %}
{%- if message.role == 'user' %}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif -%}
[INST]{{ message.content }}[/INST]
{%- elif message.role == 'assistant' %}{{ message.content }}{% for call in message.tool_calls %}
{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}{% endfor %}{{ eos_token }}
{%- elif message.role == 'tool' %}[TOOL_RESULTS]{{ message.content }}[/TOOL_RESULTS]{% endif %}
{%- endfor %}"""

# As Llama 3.1 to 3.3: one call at a time; the key `tool_calls` marks a message as a call.
LLAMA = """{{ bos_token }}
{%- if tools is not none and tools is defined %}Environment: ipython
Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif %}
{%- for message in messages %}
{%- if not (message.role == 'tool' or 'tool_calls' in message) %}<{{ message.role }}>{{ message.content | trim }}
{% elif 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls at once!') }}{% endif %}
{%- set call = message.tool_calls[0].function %}<assistant>
{{- '{"name": "' + call.name + '", ' }}{{ '"parameters": ' }}{{ call.arguments | tojson }}}
{% else %}<ipython>{{ message.content }}
{% endif %}{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""

TEMPLATES = {
    "hermes": HERMES,
    "mistral": MISTRAL,
    "mistral-nemo": MISTRAL.replace("[TOOL_CALLS] [", "[TOOL_CALLS]["),
    "mistral-args": MISTRAL_ARGS,
    "llama": LLAMA,
    "json": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}
ROWS = {row.name: row for row in (*FORMATS, JSON)}
NAMES = sorted(ROWS)

WEATHER = Function(
    "get_weather",
    "Look up the weather.",
    {
        "type": "object",
        "properties": {
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "city": {"type": "string", "maxLength": 8},
            "days": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
        },
        "required": ["unit", "city"],
        "additionalProperties": False,
    },
)
CLOCK = Function("clock", parameters={"type": "object", "properties": {}, "additionalProperties": False})
ANYTHING = Function("get")


def tool_tokenizer(name: str) -> Any:
    """Return a tokenizer with the chat template and markers of the format `name`: special tokens except for Hermes."""
    tokenizer = copied_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    special = name != "hermes"
    tokens = [AddedToken(marker, special=special, normalized=False) for marker in ROWS[name].markers]
    tokenizer.add_tokens(tokens, special_tokens=special)
    return tokenizer


class Matcher:
    """Matcher of llguidance over a tokenizer, as the engine uses it."""

    def __init__(self, tokenizer: Any):
        self._size = len(tokenizer)
        self._end = tokenizer.eos_token_id
        self._tokenizer = llguidance.hf.from_tokenizer(tokenizer, n_vocab=self._size, eos_token=self._end)

    def start(self, grammar: str) -> Any:
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        assert not matcher.get_error(), matcher.get_error()
        return matcher

    def accepts(self, grammar: str, ids: list[int]) -> bool:
        """Return True when these tokens are a whole answer."""
        matcher = self.start(grammar)
        return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()

    def allowed(self, matcher: Any) -> list[int]:
        """Return the tokens that may come next."""
        mask = llguidance.numpy.allocate_token_bitmask(1, self._size)
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        return list(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[: self._size]).tolist())

    def sample(
        self, grammar: str, choose: random.Random, limit: int = 600, begin: Sequence[int] = (), end: float = 0.7
    ) -> list[int]:
        """Return an answer of random allowed tokens; `end`: the probability of an end where one is allowed."""
        matcher = self.start(grammar)
        assert not begin or matcher.consume_tokens(list(begin))
        ids = list(begin)
        while not matcher.is_stopped():
            allowed = self.allowed(matcher)
            if self._end in allowed and choose.random() < end:
                break
            token = choose.choice([i for i in allowed if i != self._end])
            assert matcher.consume_token(token)
            ids.append(token)
            assert len(ids) < limit, "the grammar does not come to an end"
        return ids


def whole(row: ToolFormat, functions: list[Function], text: str, *, parallel: bool = True) -> list[Piece]:
    """Return the pieces of an answer that comes at once."""
    return in_chunks(row, functions, [text], parallel=parallel)


def in_chunks(row: ToolFormat, functions: list[Function], chunks: list[str], *, parallel: bool = True) -> list[Piece]:
    """Return the pieces of an answer that comes in chunks."""
    parser = row.parser(functions, parallel=parallel)
    pieces = [piece for chunk in chunks for piece in parser.push(chunk)]
    pieces += parser.finish()
    assert parser.called == any(isinstance(piece, CallPiece) for piece in pieces)
    return joined(pieces)


def content(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, TextPiece))


def calls(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Return the name and arguments of each call."""
    found = [(piece.index, piece.name) for piece in pieces if isinstance(piece, CallPiece)]
    assert [index for index, _ in found] == list(range(len(found)))
    texts = {piece.index: piece.text for piece in pieces if isinstance(piece, ArgumentsPiece)}
    return [(name, texts.get(index, "")) for index, name in found]
