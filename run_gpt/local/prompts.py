"""Conversion between a model's texts and token ids: prompts and chats to ids, and ids to the text in answers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, TypeAlias

from run_gpt.api.chat import Message, NamedTool, Tool
from run_gpt.api.schema import ChatRequest, GenerateRequest, Request
from run_gpt.api.tokens import TokenizeRequest
from run_gpt.engine.grammar import Grammar
from run_gpt.errors import ContextLengthExceeded, InvalidRequest
from run_gpt.local.least_tokens import LeastTokens
from run_gpt.local.reasoning import Reasoning
from run_gpt.models import render_chat
from run_gpt.models.fill_in import FillIn, find_fill_in
from run_gpt.models.marks import Marks
from run_gpt.models.reasoning import find_reasoning_format, thinking_values
from run_gpt.models.template_choice import requested_template
from run_gpt.models.template_options import TemplateOptions
from run_gpt.models.token_bytes import TokenBytes, decoder
from run_gpt.models.tokenizer import encode
from run_gpt.models.tools import Function, ToolParser, find_tool_format, tool_template, visible_decode
from run_gpt.models.unrepeated import Unrepeated

if TYPE_CHECKING:  # these import torch, which an executor without a model does not need
    from run_gpt.models import LoadedModel
    from run_gpt.models.grammar import CompiledGrammar, Kind

MOST_DIGITS = 18
"""Number of digits beyond which a token's id is not read: it is larger than any vocabulary."""
KEPT_TOKENS = 65_536
"""Number of tokens whose texts are kept, at about 200 bytes each. A text is asked for up to 20 times for each token."""

Source: TypeAlias = "tuple[Kind, str]"
"""Grammar before it is compiled: see GrammarCompiler."""


class Prompts:
    """Prompt converter of one loaded model. Its methods may be called from any thread."""

    def __init__(self, loaded: "LoadedModel", *, trusts_templates: bool = False, allows_special_tokens: bool = False):
        """`trusts_templates`: take the text of a chat template from a request.

        `allows_special_tokens`: in a chat's messages, too, not only in the prompts of `/generate`.
        """
        self._trusts_templates = trusts_templates
        self._marks = None if allows_special_tokens else Marks(loaded.tokenizer)
        self._tokenizer = loaded.tokenizer
        self._template = loaded.chat_template
        self._stops = tuple(loaded.sampling.get("stop", ()))
        self.vocabulary = loaded.vocabulary
        """Number of token ids that the model takes, which may be more or fewer than the tokenizer has."""
        self._decode = decoder(loaded.tokenizer)
        self.tool_format = find_tool_format(tool_template(loaded.tokenizer), loaded.tokenizer)
        self.reasoning = Reasoning(
            loaded.tokenizer, loaded.vocabulary, lambda token_id: self.token(token_id)[0], self.decode
        )
        self._token_bytes = TokenBytes(loaded.tokenizer)
        self._least_tokens = LeastTokens(loaded.tokenizer)
        self.token = lru_cache(KEPT_TOKENS)(self._token)
        """Function from a token's id to its text, with a replacement character for a part of one, and its bytes as
        numbers."""

    def of(self, request: Request, most: int) -> list[int]:
        """Return the token ids of a request's prompt. Raises InvalidRequest.

        A prompt of more than `most` tokens is refused with ContextLengthExceeded before it is tokenised, where that
        can be known.
        """
        if isinstance(request, GenerateRequest) and request.suffix:
            return self._fill_in_ids(request.prompt, request.suffix, most)
        if isinstance(request, GenerateRequest):
            return self.text_ids(request.prompt, "prompt", most=most)
        return self.chat_ids(
            request.messages,
            functions(request),
            parallel=request.parallel_tool_calls is not False,
            template=request.chat_template,
            options=template_options(request),
            most=most,
        )

    def _fill_in_ids(self, prefix: str | Sequence[int], suffix: str, most: int) -> list[int]:
        """Return the ids of a prompt that asks for the text between two. Raises InvalidRequest."""
        if (fill_in := self._fill_in) is None:
            raise InvalidRequest(
                "suffix: this model's tokenizer has no marks to fill in a middle: leave it out, or serve one for code",
                param="suffix",
            )
        text, ids = (prefix + suffix, []) if isinstance(prefix, str) else (suffix, self._checked(prefix, "prompt"))
        least = len(ids) + self._least_tokens(text, max(0, most - len(ids)))
        if least > most:
            raise _too_long("prompt", f"at least {least} tokens, with its suffix", most)
        return self._checked(fill_in.prompt(prefix, suffix), "prompt")

    @cached_property
    def _fill_in(self) -> FillIn | None:
        return find_fill_in(self._tokenizer)

    def ends(self, request: Request) -> frozenset[int]:
        """Return the ids that end the answer to a request beside the model's own. Raises InvalidRequest."""
        own = frozenset(self.checked_ids(request.stop_token_ids or (), "stop_token_ids"))
        fills_in = isinstance(request, GenerateRequest) and request.suffix and not request.ignore_eos
        return own | self._fill_in.ends if fills_in and self._fill_in is not None else own

    def text_ids(
        self, prompt: str | Sequence[int], param: str, *, special: bool = True, most: int | None = None
    ) -> list[int]:
        """Return the ids of a text, or of ids, checked. Raises InvalidRequest.

        `special`: add special tokens. `most`: see `of`.
        """
        if isinstance(prompt, str):
            self._fits(prompt, param, most)
            return self._checked(encode(self._tokenizer, prompt, param, special=special), param)
        if most is not None and len(prompt) > most:
            raise _too_long(param, f"{len(prompt)} tokens", most)
        return self._checked(prompt, param)

    def chat_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[Function] = (),
        *,
        parallel: bool = True,
        template: str | None = None,
        options: TemplateOptions = TemplateOptions(),  # noqa: B008  (frozen)
        most: int | None = None,
    ) -> list[int]:
        """Return the ids of a chat up to the beginning of the answer. Raises InvalidRequest, Forbidden.

        `template`: name of one of the model's templates, or the text of one; default: the model's own choice.
        `options`: see TemplateOptions. `most`: see `of`.
        """
        turns = [message.model_dump(exclude_none=True) for message in messages]
        for turn in turns:
            turn["role"] = "system" if turn["role"] == "developer" else turn["role"]
        jinja = None if template is None else requested_template(self._tokenizer, template, self._trusts_templates)
        values = thinking_values(jinja or tool_template(self._tokenizer) or "", options.values)
        ids = render_chat(
            self._tokenizer,
            turns,
            self._template,
            tools=tools,
            tool_format=self.tool_format,
            parallel=parallel,
            jinja=jinja,
            options=replace(options, values=values),
            check=lambda text: self._fits(text, "messages", most),
            marks=self._marks,
        )
        return self._checked(ids, "messages")

    def grammars(self, request: Request) -> list[list[Source]]:
        """Return the alternatives for the answer's format and calls; each is a list of grammars that must all match.

        An empty list allows any answer. Raises InvalidRequest.
        """
        form = request.response_format
        asked: list[Source] = [(form.type, form.source or "")] if form is not None and form.type != "text" else []
        offered = functions(request) if isinstance(request, ChatRequest) else []
        if not isinstance(request, ChatRequest) or not offered:
            return [asked] if asked else []
        parallel = request.parallel_tool_calls is not False
        if request.must_call:
            name = request.tool_choice.function.name if isinstance(request.tool_choice, NamedTool) else None
            return [[("lark", self.tool_format.grammar(offered, name=name, parallel=parallel))]]
        if asked:
            calls = self.tool_format.optional_grammar(offered, parallel=parallel, text=False)
            return [[*asked, ("lark", self.tool_format.text_grammar(offered))], [("lark", calls)]]
        if not parallel or any(function.strict for function in offered):
            return [[("lark", self.tool_format.optional_grammar(offered, parallel=parallel))]]
        return []

    def parser(self, request: ChatRequest) -> ToolParser:
        """Return the parser of the calls in one answer."""
        parallel = request.parallel_tool_calls is not False
        return self.tool_format.parser(functions(request), parallel=parallel, once=request.must_call)

    def held(self, request: Request, grammar: "CompiledGrammar") -> Grammar:
        """Return the grammar of an answer; that of required calls ends when a call is made again."""
        if not isinstance(request, ChatRequest) or not request.must_call:
            return grammar
        return Unrepeated(grammar, lambda: self.parser(request), self._token_bytes)

    def stops(self, request: Request) -> tuple[str, ...]:
        """Return the request's stop sequences and, without `ignore_eos`, the model's; in a chat also those of turns."""
        if request.ignore_eos:
            return request.stops
        ours = self._template if isinstance(request, ChatRequest) and request.chat_template is None else None
        return (*request.stops, *(() if ours is None else ours.stop), *self._stops)

    def text(self, prompt: str | Sequence[int]) -> str:
        """Return a prompt as text."""
        return prompt if isinstance(prompt, str) else self.decode(prompt)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, including special tokens."""
        return self._decode(ids)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids from a client, after a check. Raises InvalidRequest."""
        return self.decode(self._checked(ids, "tokens"))

    def _token(self, token_id: int) -> tuple[str, list[int]]:
        return self.decode([token_id]), list(self._token_bytes(token_id))

    def checked_bias(self, bias: dict[str, float] | None) -> dict[int, float]:
        """Return `logit_bias` by token id. Raises InvalidRequest."""
        for token_id in bias or {}:
            if len(token_id.lstrip("0")) > MOST_DIGITS:  # Python reads no number of thousands of digits
                message = (
                    f"logit_bias: token id {token_id[:MOST_DIGITS]}... is outside the vocabulary of {self.vocabulary}"
                )
                raise InvalidRequest(message, param="logit_bias")
        by_id = {int(token_id.lstrip("0") or "0"): value for token_id, value in (bias or {}).items()}
        self.checked_ids(list(by_id), "logit_bias")
        return by_id

    def checked_ids(self, ids: Sequence[int], param: str) -> Sequence[int]:
        """Return ids, which may be none, that the model has. Raises InvalidRequest."""
        return self._checked(ids, param) if ids else ids

    def _fits(self, text: str, param: str, most: int | None) -> None:
        """Raise ContextLengthExceeded for a text that has more than `most` tokens for certain."""
        if most is not None and (least := self._least_tokens(text, most)) > most:
            raise _too_long(param, f"{len(text)} characters, which are at least {least} tokens", most)

    def _checked(self, ids: Sequence[int], param: str) -> list[int]:
        """Return ids, at least one, that the model takes. Raises InvalidRequest: every prompt passes here."""
        if not ids:
            raise InvalidRequest(f"{param}: the tokenizer makes no token of it", param=param)
        if min(ids) < 0 or max(ids) >= self.vocabulary:
            wrong = next(token_id for token_id in ids if not 0 <= token_id < self.vocabulary)
            raise InvalidRequest(_outside(param, wrong, self.vocabulary), param=param)
        return list(ids)


def _outside(param: str, token_id: int | str, vocabulary: int) -> str:
    return f"{param}: token id {token_id} is outside the vocabulary of {vocabulary}"


def _too_long(param: str, size: str, most: int) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"{param}: a text of {size}; the model's context holds {most}, the answer's included: shorten it", param=param
    )


def template_options(request: ChatRequest | TokenizeRequest) -> TemplateOptions:
    """Return the options of the rendering of a request's chat."""
    return TemplateOptions(
        values=request.chat_template_kwargs or {},
        add_prompt=request.add_generation_prompt is not False,
        continue_last=bool(request.continue_final_message),
    )


def functions(request: ChatRequest) -> list[Function]:
    """Return the functions that the model may call."""
    return [] if request.tool_choice == "none" else as_functions(request.tools)


def as_functions(tools: Sequence[Tool] | None) -> list[Function]:
    """Return the functions of some tools."""
    return [
        Function(
            name=tool.function.name,
            description=tool.function.description,
            parameters=tool.function.parameters,
            strict=tool.function.strict,
        )
        for tool in tools or ()
    ]


def answer_decoder(loaded: "LoadedModel") -> Callable[[Sequence[int]], str]:
    """Return the decoder of an answer's token ids. Its text keeps the marks of calls and of thinking."""
    tool_format = find_tool_format(tool_template(loaded.tokenizer), loaded.tokenizer)
    reasoning = find_reasoning_format(loaded.tokenizer)
    marks = () if reasoning is None else reasoning.visible
    return visible_decode(loaded.tokenizer, {*tool_format.visible, *marks})
