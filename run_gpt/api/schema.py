"""Requests, as pydantic models: both endpoints (gRPC and HTTP), the Python model and the client take them.

A request is checked only here. An unknown field, a value out of range or a combination that cannot be served is an
InvalidRequest that names the field, the limit and the value.
"""

import re
from typing import Annotated, ClassVar, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from run_gpt.api.chat import (
    Messages,
    NamedTool,
    ResponseFormat,
    TemplateValues,
    ToolChoice,
    Tools,
    check_last_message,
    check_tools,
)
from run_gpt.api.fields import Table, Word
from run_gpt.api.request import AnyRequest
from run_gpt.api.timings import TIMINGS
from run_gpt.api.values import (
    INT32_MAX,
    AnyTextOrIds,
    Name,
    Text,
    TokenId,
    is_minus_one,
    one_or_list,
    require_text,
    shown,
)
from run_gpt.errors import InvalidRequest

DEFAULT_MAX_NEW_TOKENS = 512
MAX_SEQUENCES = 64

StopText = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
StopTexts = Annotated[
    list[StopText],
    Field(max_length=16, fail_fast=True),
    BeforeValidator(one_or_list, json_schema_input_type=list[str] | str),
]
StopTokenIds = Annotated[list[TokenId], Field(max_length=64, fail_fast=True)]
TopK = Annotated[int, Field(ge=0, le=INT32_MAX), BeforeValidator(lambda value: 0 if is_minus_one(value) else value)]
LogitBias = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)]
ChatTemplate = Annotated[str, StringConstraints(min_length=1, max_length=65_536)]
_TOKEN_ID = re.compile(r"[0-9]{1,10}", re.ASCII)

BASE = "base"
"""Name that stands for the model itself where a request could name an adapter."""
CHAT_TEMPLATE = (
    "Name of one of the model's chat templates; default: the server's choice. The text of one is taken only with "
    "`--trust-request-chat-template`."
)
TEMPLATE_VALUES = "Values for the chat template by name, such as `enable_thinking`; a template reads those that it has."
GENERATION_PROMPT = "False: the prompt ends with the last message, without the beginning of an answer; default true."
MAX_REASONING_TOKENS = "Most tokens of the model's thinking: then its end is forced; default: no limit of its own."
CONTINUE = "Continue the last message, an assistant's, instead of beginning an answer."
ADAPTER = f"Name of a loaded LoRA adapter, or `{BASE}` for the model itself; default: the server's."
SUFFIX = "Text that follows the answer, for a model that was trained to fill in a middle; an empty one is none."
CacheSalt = Annotated[str, StringConstraints(min_length=1, max_length=512)]
CACHE_SALT = (
    "A secret of the client: prefixes are reused among requests with the same one, and the same key, only; "
    "up to 512 characters."
)

_NOT_OF_BEAMS = (
    *("best_of", "logprobs", "logit_bias", "presence_penalty", "frequency_penalty", "seed"),
    *("stop_token_ids", "ignore_eos"),
)
"""Parameters that do not go with beam search."""

PromptCacheKey = Annotated[str, StringConstraints(min_length=1, max_length=512)]
CACHE_KEY = "Prompts with the same beginning and the same key go to the same replica, if it is not too busy."

# From the OpenAI spelling of a parameter to the transformers spelling that this project uses.
SYNONYMS = {"max_tokens": "max_new_tokens", "n": "num_return_sequences", "stop_str": "stop"}


class Parameters(AnyRequest):
    """Fields that both kinds of request for a text have in common."""

    FIELDS: ClassVar = Table(words={synonym: Word(name) for synonym, name in SYNONYMS.items()})

    adapter: Name | None = Field(None, description=ADAPTER)
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=INT32_MAX,
        description=f"Most tokens in the answer (also `max_tokens`); default {DEFAULT_MAX_NEW_TOKENS}, or what "
        "`max_length` leaves.",
    )
    max_length: int | None = Field(None, ge=1, le=INT32_MAX, description="Most tokens in prompt and answer together.")
    min_new_tokens: int | None = Field(
        None, ge=0, le=INT32_MAX, description="Hold the end of sequence back for so many tokens."
    )
    do_sample: bool | None = Field(
        None,
        description="False is greedy, with any sampling parameters. Unset: sample if the temperature is above 0, or "
        "one of top_k, top_p, min_p rules tokens out; without any of them the model's defaults hold, else greedy.",
    )
    temperature: float | None = Field(
        None, ge=0, le=2, description="0 is greedy; default when sampling: the model's, else 1."
    )
    default_temperature: float | None = Field(
        None,
        ge=0,
        le=2,
        description="Temperature if neither the request nor the model's defaults say whether to sample; default 0.",
    )
    top_k: TopK | None = Field(None, description="Sample from the k likeliest tokens; 0 or -1 is off.")
    top_p: float | None = Field(None, gt=0, le=1, description="Sample from the likeliest tokens of this total mass.")
    min_p: float | None = Field(None, ge=0, le=1, description="Drop tokens below this share of the likeliest one.")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="CTRL's penalty; above 1 repeats less.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Taken off each token already generated.")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="The same, for each time it occurred.")
    logit_bias: LogitBias | None = Field(None, description="Token id to a value added to its logit.")
    no_repeat_ngram_size: int | None = Field(None, ge=0, le=1024, description="No n-gram of this size twice; 0 is off.")
    num_beams: int | None = Field(None, ge=1, le=16, description="Above 1: beam search, which runs alone.")
    length_penalty: float | None = Field(None, ge=-10, le=10, description="Beam search: above 0 favours long answers.")
    num_return_sequences: int | None = Field(None, ge=1, le=MAX_SEQUENCES, description="Answers (also `n`); default 1.")
    best_of: int | None = Field(
        None, ge=1, le=MAX_SEQUENCES, description="Make so many answers, give back the likeliest `n` a token."
    )
    stop: StopTexts | None = Field(
        None, description="One text or up to 16 that end the answer and are not part of it (also `stop_str`)."
    )
    stop_token_ids: StopTokenIds | None = Field(
        None, description="Up to 64 token ids that end the answer as the end of sequence does."
    )
    ignore_eos: bool | None = Field(
        None,
        description="Go on after the model's end of sequence, which is then a token as any other, without text. "
        "`stop`, `stop_token_ids` and the length still end the answer.",
    )
    seed: int | None = Field(None, ge=0, le=INT32_MAX, description="The same seed gives the same samples.")
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Log-probabilities of the answer's tokens, with so many alternatives each."
    )
    response_format: ResponseFormat | None = Field(
        None,
        description="The form that the answer must have: `json_object`, `json_schema`, `regex` or `choice`. In a chat "
        "with tools, of an answer that is text: it may be calls instead, or must be where `tool_choice` says so.",
    )
    timings: bool | None = Field(None, description=TIMINGS)
    cache_salt: CacheSalt | None = Field(None, description=CACHE_SALT)
    prompt_cache_key: PromptCacheKey | None = Field(None, description=CACHE_KEY)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        def refuse(param: str, why: str) -> InvalidRequest:
            return InvalidRequest(f"{param} = {shown(getattr(self, param))}: {why}", param=param)

        if (self.min_new_tokens or 0) > (self.max_new_tokens or INT32_MAX):
            raise refuse("min_new_tokens", f"this exceeds max_new_tokens = {self.max_new_tokens}")
        if self.do_sample and self.temperature == 0:
            raise refuse("temperature", "this is greedy: leave do_sample out or raise the temperature")
        if self.best_of is not None and self.best_of < self.sequences:
            raise refuse("best_of", f"this is less than num_return_sequences = {self.sequences}")
        for key in self.logit_bias or {}:
            if not _TOKEN_ID.fullmatch(key) or int(key) > INT32_MAX:
                raise InvalidRequest(f"logit_bias: {shown(key)} is not a token id", param="logit_bias")
        if (form := self.form) is not None:
            for name in ("num_beams", "min_new_tokens", "no_repeat_ngram_size", "ignore_eos"):
                if getattr(self, name):
                    raise refuse(name, f"this does not go with {form}, which may leave no choice of the next token")
        if not self.beam_search:
            if self.length_penalty is not None:
                raise refuse("length_penalty", "this belongs to beam search: set num_beams above 1")
            return self
        if self.samples:
            raise refuse(
                "num_beams", "beam search does not sample: leave out do_sample, temperature, top_k, top_p, min_p"
            )
        if self.max_new_tokens == 0:
            raise refuse("max_new_tokens", "beam search needs at least 1")
        if self.sequences > (self.num_beams or 1):
            raise refuse("num_return_sequences", f"this exceeds num_beams = {self.num_beams}")
        for name in _NOT_OF_BEAMS:
            if getattr(self, name) is not None:
                raise refuse(name, f"this does not go with beam search (num_beams = {self.num_beams})")
        return self

    @property
    def form(self) -> str | None:
        """Name of the parameter that enforces a form of the answer, or None."""
        given = self.response_format
        return "response_format" if given is not None and given.type != "text" else None

    @property
    def samples(self) -> bool:
        """True when the request asks for sampling, False when it does not, or says nothing of it."""
        if self.do_sample is not None:
            return self.do_sample
        if self.temperature is not None:
            return self.temperature > 0
        return bool(self.top_k or self.min_p or self.top_p not in (None, 1))

    @property
    def sequences(self) -> int:
        """Number of answers to give back."""
        return self.num_return_sequences or 1

    @property
    def beam_search(self) -> bool:
        """True for beam search, which runs alone and cannot be streamed."""
        return (self.num_beams or 1) > 1

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop sequences, none to sixteen."""
        return tuple(self.stop or ())

    def check_stream(self) -> Self:
        """Return this request if its answer can be streamed. Raises InvalidRequest otherwise."""
        if self.beam_search:
            raise InvalidRequest(f"num_beams = {self.num_beams}: beam search cannot be streamed", param="num_beams")
        if (self.best_of or 0) > self.sequences:
            raise InvalidRequest(f"best_of = {self.best_of} cannot be streamed: nothing is best yet", param="best_of")
        return self


class GenerateRequest(Parameters):
    """Continue a text."""

    prompt: AnyTextOrIds = Field(description="The text to continue, or its token ids; empty only with a `suffix`.")
    suffix: Text | None = Field(None, description=SUFFIX)
    max_new_tokens: int | None = Field(
        None,
        ge=0,
        le=INT32_MAX,
        description=f"Most tokens in the answer (also `max_tokens`); default {DEFAULT_MAX_NEW_TOKENS}, or what "
        "`max_length` leaves. 0 with `echo` and `logprobs` scores the prompt.",
    )
    echo: bool | None = Field(
        None, description="Begin the answer's text with the prompt, and `logprobs` with those of its tokens."
    )

    @model_validator(mode="after")
    def _possible_suffix(self) -> Self:
        require_text(self.prompt, self.suffix, "prompt")
        if not self.suffix:
            return self
        if self.beam_search:
            raise InvalidRequest(f"suffix: this does not go with num_beams = {self.num_beams}", param="suffix")
        if self.echo and self.logprobs is not None:
            raise InvalidRequest(
                "suffix: with it the prompt has other tokens: leave echo or logprobs out", param="suffix"
            )
        return self


class ChatRequest(Parameters):
    """Answer the last message of a chat."""

    messages: Messages = Field(description="The chat so far, oldest first.")
    tools: Tools | None = Field(None, description="Functions that the model may call, in OpenAI's form.")
    tool_choice: ToolChoice | None = Field(
        None,
        description="`auto` (the default with tools): the model decides; `required`: it must call; "
        "`none`: it must not; or the one function that it must call.",
    )
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call; default true.")
    chat_template: ChatTemplate | None = Field(None, description=CHAT_TEMPLATE)
    chat_template_kwargs: TemplateValues | None = Field(None, description=TEMPLATE_VALUES)
    add_generation_prompt: bool | None = Field(None, description=GENERATION_PROMPT)
    continue_final_message: bool | None = Field(None, description=CONTINUE)
    max_reasoning_tokens: int | None = Field(None, ge=0, le=INT32_MAX, description=MAX_REASONING_TOKENS)

    @model_validator(mode="after")
    def _possible_tools(self) -> Self:
        check_tools(self.tools, self.tool_choice)
        if self.continue_final_message:
            check_last_message(self.messages, self.add_generation_prompt)
        return self

    @property
    def form(self) -> str | None:
        """See Parameters."""
        if self.must_call:
            return "tool_choice"
        if super().form is None and self.tools and self.tool_choice != "none":
            if self.parallel_tool_calls is False:
                return "parallel_tool_calls"
            if any(tool.function.strict for tool in self.tools):
                return "a strict function"
        return super().form or (None if self.max_reasoning_tokens is None else "max_reasoning_tokens")

    @property
    def must_call(self) -> bool:
        """True when the answer must consist of calls only."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)


Request = GenerateRequest | ChatRequest
"""A request that is answered with a text."""
