"""Tokenizers with the markers and chat templates of models that call functions, reduced to the parts for calls."""

import random
import re
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

_START = "{%- for m in messages %}{%- if m.role in ('system', 'user') %}"
_TURN = "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- elif m.role == 'assistant' %}"
_TOOLS = "{%- if tools %}{{- '<tools>' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '</tools>' }}{% endif %}"

# As Qwen 3 Coder writes it.
QWEN_CODER = (
    _TOOLS
    + _START
    + _TURN
    + """{{- '<|im_start|>assistant\n' + m.content }}
{%- for call in m.tool_calls %}{{- '\n<tool_call>\n<function=' + call.function.name + '>\n' }}
{%- for key, value in call.function.arguments | items %}{{- '<parameter=' + key + '>\n' }}
{{- value if value is string else value | tojson }}{{- '\n</parameter>\n' }}{% endfor %}
{{- '</function>\n</tool_call>' }}{% endfor %}{{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}{{- '<tool_response>\n' + m.content + '\n</tool_response>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""
)

# As GLM 4.5.
GLM = (
    _TOOLS
    + _START
    + _TURN
    + """{{- '<|assistant|>\n' + m.content }}
{%- for call in m.tool_calls %}{{- '\n<tool_call>' + call.function.name + '\n' }}
{%- for key, value in call.function.arguments.items() %}<arg_key>{{ key }}</arg_key>
<arg_value>{{ value | tojson if value is not string else value }}</arg_value>
{% endfor %}{{- '</tool_call>' }}{% endfor %}
{%- elif m.role == 'tool' %}{{- '<|observation|>\n<tool_response>' + m.content + '</tool_response>' }}{% endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"""
)

# As DeepSeek V3 and 3.1, whose arguments are text: tokens are written in short here.
_DEEPSEEK = (
    _TOOLS
    + _START
    + """{{- '<@User@>' + m.content }}
{%- elif m.role == 'assistant' %}{{- '<@Assistant@>' + m.content }}
{%- if m.tool_calls %}{{- '<@tool_calls_begin@>' }}
{%- for call in m['tool_calls'] %}%s{{- '<@tool_call_end@>' }}{% endfor %}{{- '<@tool_calls_end@>' }}{% endif %}
{%- elif m.role == 'tool' %}{{- '<@tool_output_begin@>' + m.content + '<@tool_output_end@>' }}{% endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<@Assistant@>' }}{% endif %}"""
)


def _deepseek(call: str) -> str:
    """Return the template with the model's own bars and blanks in its tokens."""
    text = _DEEPSEEK.replace("%s", call)
    return re.sub("<@(.*?)@>", lambda found: f"<\uff5c{found[1]}\uff5c>".replace("_", "\u2581"), text)


DEEPSEEK = _deepseek(
    "{%- if not loop.first %}{{- '\\n' }}{% endif %}{{- '<@tool_call_begin@>' + call['type'] + '<@tool_sep@>' }}"
    "{{- call['function']['name'] + '\\n' + '```json' + '\\n' + call['function']['arguments'] + '\\n' + '```' }}"
)
DEEPSEEK_31 = _deepseek(
    "{{- '<@tool_call_begin@>' + call['function']['name'] + '<@tool_sep@>' + call['function']['arguments'] }}"
)

# As Kimi K2.
KIMI = (
    _TOOLS
    + _START
    + _TURN
    + """{{- '<|im_assistant|>' + m.content }}{%- if m.tool_calls %}{{- '<|tool_calls_section_begin|>' }}
{%- for call in m['tool_calls'] %}{{- '<|tool_call_begin|>' + call['id'] + '<|tool_call_argument_begin|>' }}
{%- if call['function']['arguments'] is string %}{{ call['function']['arguments'] }}
{%- else %}{{ call['function']['arguments'] | tojson }}{% endif %}{{- '<|tool_call_end|>' }}{% endfor %}
{{- '<|tool_calls_section_end|>' }}{% endif %}
{%- elif m.role == 'tool' %}{{- '## Return of ' + m.tool_call_id + '\n' + m.content }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_assistant|>' }}{% endif %}"""
)

# As gpt-oss.
HARMONY = """{%- if tools %}{{- 'namespace functions {' }}{% for t in tools %}{{ t | tojson }}{% endfor %}
{{- '}' }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}{%- set call = m.tool_calls[0].function %}
{%- if m.content %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.content + '<|end|>' }}{% endif %}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
{{- call.arguments | tojson }}{{- '<|call|>' }}{%- set last = namespace(name=call.name) %}
{%- elif m.role == 'assistant' %}{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}
{%- elif m.role == 'tool' %}{{- '<|start|>functions.' + m.name + ' to=assistant<|channel|>commentary<|message|>' }}
{{- m.content | tojson }}{{- '<|end|>' }}
{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}"""

TEMPLATES = {
    "qwen-coder": QWEN_CODER,
    "glm": GLM,
    "deepseek": DEEPSEEK,
    "deepseek-3.1": DEEPSEEK_31,
    "kimi": KIMI,
    "harmony": HARMONY,
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
TAGGED = ["glm", "qwen-coder"]
"""Formats whose arguments are no JSON text."""
JSON_NAMES = [name for name in NAMES if name not in TAGGED]

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
