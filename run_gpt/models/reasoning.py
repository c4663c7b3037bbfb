"""Formats in which models write their thinking: one entry for each, found by the text of the chat template."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from run_gpt.models.reasoning_parser import (
    CHANNEL,
    ENDS,
    MESSAGE,
    START,
    ChannelParser,
    MarkParser,
    Marks,
    ReasoningParser,
    is_thinking,
)

Decode = Callable[[Sequence[int]], str]

TAIL = 32
"""Number of a prompt's last tokens that show if it ends with a mark."""


@dataclass(frozen=True, kw_only=True)
class ReasoningFormat:
    """One format of thinking, with all that is needed to recognise, read and end it."""

    name: str
    marks: tuple[Marks, ...]
    """Marks that the answers may have; the first ones are those of the template."""
    contains: tuple[str, ...]
    """Texts that the chat template of the format's models must all contain."""
    channels: bool = False
    """True for messages on channels, whose marks stand around each of them."""
    gap: str = ""
    """Text between the end of the thinking and the answer, or its calls."""
    answer: str = ""
    """Text before an answer that is no call, with or without thinking before it."""
    visible: tuple[str, ...] = ()
    """Tokens of this tokenizer that the parser must see in the text of an answer, special or not."""

    def parser(self, prompt_end: str, resumed: str = "") -> ReasoningParser:
        """Return a parser of one answer. `prompt_end`: text of the prompt's last tokens, with special tokens.

        `resumed`: text of the message that the answer continues, if it does.
        """
        if self.channels:
            _, found, begun = prompt_end.rpartition(f"{START}assistant")
            return ChannelParser(begun if found else "")
        opened = self.opened(prompt_end)
        if opened is not None:
            return MarkParser(self.marks, opened)
        for mark in self.marks:
            if resumed.rfind(mark.begin) > resumed.rfind(mark.end):
                return MarkParser(self.marks, mark, resumed=True)
        return MarkParser(self.marks)

    def opened(self, prompt_end: str) -> Marks | None:
        """Return the marks whose first one ends the prompt."""
        text = prompt_end.rstrip()
        return next((mark for mark in self.marks if text.endswith(mark.begin)), None)

    def closed(self, prompt_end: str) -> bool:
        """Return True if the prompt ends with an end of thinking: the answer then has none."""
        text = prompt_end.rstrip()
        ends = [end for mark in self.marks for end in (mark.end, mark.first) if end]
        return not self.channels and text.endswith(tuple(ends))

    def count(self, ids: Sequence[int], parser: ReasoningParser, tokens: "MarkTokens") -> int:
        """Return the number of an answer's tokens that are thinking, without marks. `parser` has read the answer."""
        if isinstance(parser, ChannelParser):
            return _on_channels(map(tokens.text, ids), parser.begun)
        if not parser.began or not isinstance(parser, MarkParser):
            return 0
        begin = 0 if parser.is_opened else tokens.after(ids, parser.mark.begin)
        end = tokens.after(ids[begin:], parser.mark.end)
        return max(0, end - len(tokens.ids(parser.mark.end))) if end else len(ids) - begin


@dataclass(frozen=True)
class MarkTokens:
    """Tokens of marks in one tokenizer."""

    ids: Callable[[str], Sequence[int]]
    """Function from a mark to its tokens."""
    text: Callable[[int], str]
    """Function from a token to its text."""
    decode: Decode
    """Function from tokens to their text."""

    def after(self, ids: Sequence[int], mark: str) -> int:
        """Return the number of tokens up to the end of the first `mark`, 0 if it does not occur."""
        own = self.ids(mark)
        if len(own) == 1:
            return list(ids).index(own[0]) + 1 if own[0] in ids else 0
        if mark not in self.decode(ids):
            return 0
        return bisect_left(range(len(ids)), True, key=lambda count: mark in self.decode(ids[:count]))


def _on_channels(tokens: Iterable[str], begun: str) -> int:
    """Return the number of tokens on the channel of thinking; `begun` is the prompt's part of the answer."""
    header, in_body, _ = begun.partition(MESSAGE)
    count, is_thought = 0, is_thinking(header)
    for token in tokens:
        if not in_body:
            if token == MESSAGE:
                in_body, is_thought = token, is_thinking(header)
            header += token
        elif token in (*ENDS, START):
            in_body, header = "", ""
        else:
            count += is_thought
    return count


def thinking_values(template: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values`, with `enable_thinking` as `thinking` for a template that reads that word only."""
    own = dict(values)
    if "enable_thinking" in own and "enable_thinking" not in template and "thinking" in template:
        own.setdefault("thinking", own["enable_thinking"])
    return own


THINK = Marks(begin="<think>", end="</think>")

FORMATS: tuple[ReasoningFormat, ...] = (
    # gpt-oss, in OpenAI's harmony.
    ReasoningFormat(
        name="harmony",
        contains=(CHANNEL, "analysis"),
        marks=(Marks(begin=f"{CHANNEL}analysis{MESSAGE}", end=ENDS[0]),),
        channels=True,
        gap=f"{START}assistant",
        answer=f"{CHANNEL}final{MESSAGE}",
        visible=(CHANNEL, MESSAGE, START, *ENDS),
    ),
    # Magistral 2507 and later, Ministral 3; Magistral 2506 writes <think>.
    ReasoningFormat(name="magistral", contains=("[THINK]",), marks=(Marks(begin="[THINK]", end="[/THINK]"), THINK)),
    # Command A Reasoning.
    ReasoningFormat(
        name="command",
        contains=("<|START_THINKING|>",),
        marks=(
            Marks(
                begin="<|START_THINKING|>",
                end="<|END_THINKING|>",
                first="<|START_RESPONSE|>",
                last="<|END_RESPONSE|>",
            ),
        ),
    ),
    # Granite 3.2; its marks are words.
    ReasoningFormat(
        name="granite-words",
        contains=("Here is my thought process:",),
        marks=(Marks(begin="Here is my thought process:", end="Here is my response:", blanks=" \r\n"),),
    ),
    # Granite 3.3, ERNIE 4.5 Thinking.
    ReasoningFormat(
        name="response",
        contains=("<think>", "<response>"),
        marks=(Marks(begin="<think>", end="</think>", first="<response>", last="</response>"),),
    ),
    # Seed-OSS.
    ReasoningFormat(name="seed", contains=("<seed:think>",), marks=(Marks(begin="<seed:think>", end="</seed:think>"),)),
    # EXAONE Deep.
    ReasoningFormat(name="thought", contains=("<thought>",), marks=(Marks(begin="<thought>", end="</thought>"),)),
    # Kimi-VL Thinking.
    ReasoningFormat(name="kimi", contains=("◁think▷",), marks=(Marks(begin="◁think▷", end="◁/think▷"),)),
    # Qwen 3, QwQ, DeepSeek R1 and V3.1, SmolLM3, GLM 4.5, Phi-4 Reasoning, MiniMax M2, Kimi K2 Thinking, Nemotron ...
    ReasoningFormat(name="think", contains=("</think>",), marks=(THINK,)),
    ReasoningFormat(name="think", contains=("<think>",), marks=(THINK,)),
)


def find_reasoning_format(tokenizer: Any) -> ReasoningFormat | None:
    """Return the format of a model by its chat templates; None for a model that does not think apart."""
    templates = getattr(tokenizer, "chat_template", None) or ""
    text = "\n".join(templates.values()) if isinstance(templates, dict) else templates
    row = next((row for row in FORMATS if all(part in text for part in row.contains)), None)
    if row is None:
        return None
    texts = {*row.visible, *(part for mark in row.marks for part in (mark.begin, mark.end, mark.first, mark.last))}
    added = tokenizer.get_added_vocab()
    return replace(row, visible=tuple(text for text in sorted(texts) if text in added))
