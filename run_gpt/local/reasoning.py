"""Thinking in a model's answers: its text, its tokens, log-probabilities that are not its own, and its bounds."""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from run_gpt.api.schema import ChatRequest, Request
from run_gpt.engine.grammar import Grammar
from run_gpt.engine.request import TokenEvent, TokenLogprob
from run_gpt.engine.text import Unstopped
from run_gpt.local.reasoning_grammar import Prefixed, ThinkingGrammar
from run_gpt.models.reasoning import TAIL, Decode, MarkTokens, ReasoningFormat, find_reasoning_format
from run_gpt.models.reasoning_parser import ReasoningParser
from run_gpt.models.tokenizer import encode


class Reasoning:
    """Thinking of one model's answers in chats."""

    def __init__(self, tokenizer: Any, vocabulary: int, text: Callable[[int], str], decode: Decode):
        """`vocabulary`: number of token ids that the model takes. `text`, `decode`: see MarkTokens."""
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._tokens = MarkTokens(lru_cache(self._ids), text, decode)
        self.format: ReasoningFormat | None = find_reasoning_format(tokenizer)
        """Format of the thinking; None: the model does not think apart from its answer."""

    def thoughts(self, request: Request, prompt_ids: Sequence[int]) -> "Thoughts | None":
        """Return the reader of the thinking in a request's answers; None if they have none that is apart."""
        if self.format is None or not isinstance(request, ChatRequest):
            return None
        resumed = (request.messages[-1].content or "") if request.continue_final_message else ""
        return Thoughts(self.format, self._tokens, self._tokens.decode(prompt_ids[-TAIL:]), resumed)

    def grammar(
        self, request: Request, prompt_ids: Sequence[int], form: Grammar | None, end_ids: Sequence[int]
    ) -> Grammar | None:
        """Return the grammar of an answer: any thinking within its budget, then `form`, if the answer has one.

        `end_ids`: ids that end an answer.
        """
        thoughts, budget = self.thoughts(request, prompt_ids), getattr(request, "max_reasoning_tokens", None)
        if thoughts is None or thoughts.none_follows or (form is None and budget is None):
            return form
        tools = isinstance(request, ChatRequest) and bool(request.tools) and request.tool_choice != "none"
        return ThinkingGrammar(
            format=thoughts.format,
            tokens=self._tokens,
            parser=thoughts.new_parser,
            size=self._size,
            end_ids=end_ids,
            inner=form,
            budget=budget,
            blank_ids=frozenset() if thoughts.format.channels else self._blank_ids,
            crossing_ids=self._crossing_ids(thoughts.format),
            calls=tools,
        )

    def unstopped(self, request: Request, prompt_ids: Sequence[int]) -> Callable[[], Unstopped] | None:
        """Return the maker of functions that know the thinking, in which a request's stop texts do not count.

        A stop text with a mark is meant for the thinking: then all of the answer is searched.
        """
        if not request.stops or (thoughts := self.thoughts(request, prompt_ids)) is None:
            return None
        marks = [mark for one in thoughts.format.marks for mark in (one.begin, one.end)]
        if any(mark in stop for stop in request.stops for mark in marks):
            return None
        return lambda: _Unstopped(thoughts.new_parser())

    def text_form(self, form: Grammar) -> Grammar:
        """Return the grammar of an answer that is no call, in a form: some formats have a mark before it."""
        answer = self._tokens.ids(self.format.answer) if self.format is not None else ()
        return Prefixed(answer, form, self._size) if answer else form

    @property
    def _size(self) -> int:
        return max(self._vocabulary, len(self._tokenizer))

    def _ids(self, mark: str) -> tuple[int, ...]:
        """Return the tokens of a mark, or of several in a row."""
        own = self._tokenizer.get_added_vocab().get(mark)
        return (int(own),) if own is not None else tuple(encode(self._tokenizer, mark, "messages", special=False))

    @cached_property
    def _blank_ids(self) -> frozenset[int]:
        """Tokens that are one or two line breaks."""
        found = [encode(self._tokenizer, text, "messages", special=False) for text in ("\n", "\n\n")]
        return frozenset(ids[0] for ids in found if len(ids) == 1 and not self._tokens.text(ids[0]).strip("\n"))

    def _crossing_ids(self, form: ReasoningFormat) -> frozenset[int]:
        """Return the tokens that may end a mark of several tokens and begin the answer."""
        ends = {mark.end[-1] for mark in form.marks if len(self._tokens.ids(mark.end)) > 1}
        return self._with_more(frozenset(ends)) if ends else frozenset()

    @lru_cache(1)  # noqa: B019  (as long as the model)
    def _with_more(self, ends: frozenset[str]) -> frozenset[int]:
        """Return the tokens that have text after one of these characters."""
        texts = ((token_id, self._tokens.decode([token_id])) for token_id in range(self._vocabulary))
        return frozenset(token_id for token_id, text in texts if any(text[:-1].find(end) >= 0 for end in ends))


class Thoughts:
    """Reader of the thinking in each sequence of a request."""

    def __init__(self, form: ReasoningFormat, tokens: MarkTokens, prompt_end: str, resumed: str):
        """`prompt_end`, `resumed`: see ReasoningFormat.parser."""
        self.format, self._tokens = form, tokens
        self._prompt_end, self._resumed = prompt_end, resumed
        self._parsers: dict[int, ReasoningParser] = {}
        self._shown: dict[int, _Shown] = {}

    @property
    def none_follows(self) -> bool:
        """True when the prompt has an end of the thinking, so that the answer has none."""
        return self.format.closed(self._prompt_end)

    def new_parser(self) -> ReasoningParser:
        """Return a parser of one answer."""
        return self.format.parser(self._prompt_end, self._resumed)

    def split(self, event: TokenEvent) -> tuple[str, str]:
        """Return the thinking and the content of an event's text, with what was held back before."""
        if (parser := self._parsers.get(event.index)) is None:
            parser = self._parsers[event.index] = self.new_parser()
        thought, text = parser.push(event.text)
        if event.finish_reason is not None:
            last_thought, last_text = parser.finish()
            thought, text = thought + last_thought, text + last_text
        return thought, text

    def count(self, event: TokenEvent) -> int | None:
        """Return the number of a sequence's tokens that are thinking, once `split` has had its end; None before."""
        if event.finish_reason is None:
            return None
        parser = self._parsers[event.index]
        ended = parser.thinking and event.finish_reason == "stop"  # by a token that is no thought
        return self.format.count(event.token_ids[:-1] if ended else event.token_ids, parser, self._tokens)

    def shown(
        self, event: TokenEvent, tokens: Sequence[TokenLogprob], text: Callable[[TokenLogprob], str]
    ) -> list[TokenLogprob]:
        """Return those of an event's tokens that are no thinking and no marks. `text`: function to a token's text."""
        if (shown := self._shown.get(event.index)) is None:
            shown = self._shown[event.index] = _Shown(self.new_parser())
        return shown.of(tokens, text, ended=event.finish_reason is not None)


class _Unstopped:
    """Reader of one answer (see engine.text.Unstopped): stop texts count in what the model says."""

    def __init__(self, parser: ReasoningParser):
        self._parser = parser

    def __call__(self, text: str) -> int | None:
        parser = self._parser
        _, said = parser.push(text)
        if not (parser.answering or parser.began):
            return None
        if not parser.began or (said and not text.endswith(said)):
            return 0
        return len(text) - len(said)


class _Shown:
    """Filter of one sequence's tokens."""

    def __init__(self, parser: ReasoningParser):
        self._parser = parser
        self._held: list[TokenLogprob] = []
        """First tokens: they may still begin the thinking."""

    def of(
        self, tokens: Sequence[TokenLogprob], text: Callable[[TokenLogprob], str], *, ended: bool
    ) -> list[TokenLogprob]:
        parser, shown = self._parser, list[TokenLogprob]()
        for token in tokens:
            was_thinking = parser.thinking
            parser.push(text(token))
            if parser.answering:
                shown += () if parser.crossed else self._held
                self._held = []
                if not (parser.crossed or was_thinking):
                    shown.append(token)
            elif parser.began:
                self._held = []
            else:
                self._held.append(token)
        return shown + (self._held if ended else [])
