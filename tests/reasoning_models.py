"""Chat templates of models that think, reduced to the parts for thinking, and tokenizers with their marks."""

from typing import Any

from families import copied_tokenizer
from tokenizers import AddedToken

_TURNS = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
_END = "{{- m.content + '<|im_end|>\\n' }}{%- endfor %}"

# As Qwen 3; the tool part is that of tool_models.
QWEN = (
    _TURNS
    + "{%- if m.reasoning_content %}{{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{%- endif %}"
    + _END
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    + "{%- if enable_thinking is defined and enable_thinking is false %}"
    + "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
# As DeepSeek R1 and Qwen 3 Thinking: the prompt has the beginning of the thinking.
DEEPSEEK = (
    _TURNS
    + "{%- if '</think>' in m.content %}{%- set m = {'content': m.content.split('</think>')[-1]} %}{%- endif %}"
    + _END
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)
# As Magistral 2507.
MAGISTRAL = (
    "{{- '[SYSTEM_PROMPT]Draft your thinking: [THINK]Your thoughts[/THINK]Then answer.[/SYSTEM_PROMPT]' }}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST]' + m.content + '[/INST]' }}"
    "{%- else %}{{- m.content + eos_token }}{%- endif %}{%- endfor %}"
)
# As Granite 3.2.
GRANITE = (
    "{%- if thinking %}{{- '<|system|>Write your thoughts after \\'Here is my thought process:\\' and the answer after "
    "\\'Here is my response:\\'.' }}{%- endif %}"
    + _TURNS
    + _END
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# As Granite 3.3.
RESPONSE = (
    "{%- if thinking %}{{- '<|system|>Think between <think></think>, answer in <response></response>.' }}{%- endif %}"
    + _TURNS
    + _END
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# As gpt-oss.
HARMONY = (
    "{{- '<|start|>system<|message|>Reasoning: ' + reasoning_effort | default('medium')"
    " + '\\n# Valid channels: analysis, commentary, final.<|end|>' }}"
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- if m.thinking %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
    "{%- else %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
# As SmolLM3.
SMOL = (
    "{%- set mode = '/think' if enable_thinking | default(true) else '/no_think' %}"
    "{{- '<|im_start|>system\\nReasoning Mode: ' + mode + '<|im_end|>\\n' }}"
    + _TURNS
    + _END
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    + "{%- if mode == '/no_think' %}{{- '<think>\\n\\n</think>\\n' }}{%- endif %}{%- endif %}"
)

TEMPLATES = {
    "qwen": QWEN,
    "deepseek": DEEPSEEK,
    "magistral": MAGISTRAL,
    "granite": GRANITE,
    "response": RESPONSE,
    "harmony": HARMONY,
    "smol": SMOL,
}
SPECIAL = {
    "magistral": ["[THINK]", "[/THINK]"],
    "harmony": ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>"],
}
ADDED = {name: ["<think>", "</think>"] for name in ("qwen", "deepseek", "smol")}
PROMPT_ENDS = {
    "deepseek": "<|im_start|>assistant\n<think>\n",
    "magistral": "Hi[/INST]",
    "harmony": "Hi<|end|><|start|>assistant",
}

BODIES: dict[str, list[tuple[str, str, str]]] = {
    "qwen": [
        ("<think>\nLet me see.\n\n2 + 2.\n</think>\n\nIt is 4.\n", "Let me see.\n\n2 + 2.", "It is 4.\n"),
        ("\n<think></think>4", "", "4"),
        ("<think>\n\n</think>\n\n4 </think> <think>", "", "4 </think> <think>"),
        (" 4 < 5 <think>no</think>", "", " 4 < 5 <think>no</think>"),
        ("<thin", "", "<thin"),
        ("<think>cut <b>here</thi", "cut <b>here</thi", ""),
        ("<think> a\n </think>", "a", ""),
    ],
    "deepseek": [
        ("Let me see.\n</think>\n\nIt is 4.", "Let me see.", "It is 4."),
        ("<think>\nLet me see.</think>It is 4.", "Let me see.", "It is 4."),
        ("</think>4", "", "4"),
        ("only thoughts", "only thoughts", ""),
        ("<thinks> are </think>\n words", "<thinks> are", " words"),
    ],
    "magistral": [
        ("[THINK]It is[ easy][/THINK]4", "It is[ easy]", "4"),
        ("<think>\nOld.\n</think>\n4", "Old.", "4"),
        ("[1, 2]", "", "[1, 2]"),
    ],
    "granite": [
        ("Here is my thought process: easy.\nHere is my response: It is 4.", "easy.", "It is 4."),
        ("Here is my answer", "", "Here is my answer"),
    ],
    "response": [
        ("<think>easy</think>\n<response>It is\n4.</response>", "easy", "It is\n4."),
        ("<think>easy</think> 4", "easy", " 4"),
        ("<think>easy</think>\n<response>\nIt <i>is</respo", "easy", "It <i>is</respo"),
        ("no <response> at all</response>", "", "no <response> at all</response>"),
    ],
    "harmony": [
        (
            "<|channel|>analysis<|message|>Easy.\n<|end|><|start|>assistant<|channel|>final<|message|>It is 4.",
            "Easy.\n",
            "It is 4.",
        ),
        ("<|channel|>final<|message|>4<|return|>", "", "4"),
        (
            "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis<|message|>Two.",
            "One.\nTwo.",
            "",
        ),
        (
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>analysis<|message|>Hm.<|end|>"
            '<|start|>assistant<|channel|>commentary to=functions.get <|constrain|>json<|message|>{"a": 1}<|call|>',
            "Hm.",
            "I look.<|start|>assistant"
            '<|channel|>commentary to=functions.get <|constrain|>json<|message|>{"a": 1}<|call|>',
        ),
        ("<|channel|>analysis<|mess", "", ""),
        ("plain words", "", "plain words"),
        (
            " to=functions.get<|channel|>commentary json<|message|>{}",
            "",
            " to=functions.get<|channel|>commentary json<|message|>{}",
        ),
    ],
    "smol": [("<think>\nHm.\n</think>\nYes.", "Hm.", "Yes."), ("Yes.", "", "Yes.")],
}
"""Texts of answers by format, with their thinking and their content."""


def reasoning_tokenizer(name: str) -> Any:
    """Return a tokenizer with the chat template and marks of a model: special tokens, plain ones, or words."""
    tokenizer = copied_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    for special, marks in ((True, SPECIAL.get(name)), (False, ADDED.get(name))):
        tokens = [AddedToken(mark, special=special, normalized=False) for mark in marks or ()]
        tokenizer.add_tokens(tokens, special_tokens=special)
    return tokenizer
