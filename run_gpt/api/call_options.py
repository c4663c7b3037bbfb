"""Keyword parameters of a model's calls, for type checkers and editors. The request schema checks their values."""

# Made by scripts/keyword_types.py: change the declarations there, and run it with --write.

from typing import Any, Literal, TypedDict

from run_gpt.api.chat import NamedTool, ResponseFormat, Tool


class CallOptions(TypedDict, total=False):
    """Options of every call."""

    timeout: float | None
    """Seconds after which the call raises DeadlineExceeded; default: never."""
    request_id: str | None
    """Name of the request in the log of a server: up to 128 printable ASCII characters without spaces."""


class TextOptions(CallOptions, total=False):
    """Options of `generate` and `chat`."""

    model: str | None
    """The served model's name; another name is a 404."""
    adapter: str | None
    """Name of a loaded LoRA adapter, or `base` for the model itself; default: the server's."""
    max_length: int | None
    """Most tokens in prompt and answer together."""
    min_new_tokens: int | None
    """Hold the end of sequence back for so many tokens."""
    do_sample: bool | None
    """False is greedy, with any sampling parameters. Unset: sample if the temperature is above 0, or one of top_k,
    top_p, min_p rules tokens out; without any of them the model's defaults hold, else greedy."""
    temperature: float | None
    """0 is greedy; default when sampling: the model's, else 1."""
    default_temperature: float | None
    """Temperature if neither the request nor the model's defaults say whether to sample; default 0."""
    top_k: int | None
    """Sample from the k likeliest tokens; 0 or -1 is off."""
    top_p: float | None
    """Sample from the likeliest tokens of this total mass."""
    min_p: float | None
    """Drop tokens below this share of the likeliest one."""
    repetition_penalty: float | None
    """CTRL's penalty; above 1 repeats less."""
    presence_penalty: float | None
    """Taken off each token already generated."""
    frequency_penalty: float | None
    """The same, for each time it occurred."""
    logit_bias: dict[str, float] | None
    """Token id to a value added to its logit."""
    no_repeat_ngram_size: int | None
    """No n-gram of this size twice; 0 is off."""
    num_beams: int | None
    """Above 1: beam search, which runs alone."""
    length_penalty: float | None
    """Beam search: above 0 favours long answers."""
    num_return_sequences: int | None
    """Answers (also `n`); default 1."""
    n: int | None
    """Same as `num_return_sequences`."""
    best_of: int | None
    """Make so many answers, give back the likeliest `n` a token."""
    stop: list[str] | str | None
    """One text or up to 16 that end the answer and are not part of it (also `stop_str`)."""
    stop_str: list[str] | str | None
    """Same as `stop`."""
    stop_token_ids: list[int] | None
    """Up to 64 token ids that end the answer as the end of sequence does."""
    ignore_eos: bool | None
    """Go on after the model's end of sequence, which is then a token as any other, without text. `stop`,
    `stop_token_ids` and the length still end the answer."""
    seed: int | None
    """The same seed gives the same samples."""
    logprobs: int | None
    """Log-probabilities of the answer's tokens, with so many alternatives each."""
    response_format: ResponseFormat | dict[str, Any] | None
    """The form that the answer must have: `json_object`, `json_schema`, `regex` or `choice`. In a chat with tools, of
    an answer that is text: it may be calls instead, or must be where `tool_choice` says so."""
    timings: bool | None
    """Say in the answer how long it took, as `timings`; of a stream, in its last event."""
    cache_salt: str | None
    """A secret of the client: prefixes are reused among requests with the same one, and the same key, only; up to 512
    characters."""
    prompt_cache_key: str | None
    """Prompts with the same beginning and the same key go to the same replica, if it is not too busy."""


class GenerateOptions(TextOptions, total=False):
    """Options of `generate`."""

    max_new_tokens: int | None
    """Most tokens in the answer (also `max_tokens`); default 512, or what `max_length` leaves. 0 with `echo` and
    `logprobs` scores the prompt."""
    max_tokens: int | None
    """Same as `max_new_tokens`."""
    suffix: str | None
    """Text that follows the answer, for a model that was trained to fill in a middle; an empty one is none."""
    echo: bool | None
    """Begin the answer's text with the prompt, and `logprobs` with those of its tokens."""


class ChatOptions(TextOptions, total=False):
    """Options of `chat`."""

    max_new_tokens: int | None
    """Most tokens in the answer (also `max_tokens`); default 512, or what `max_length` leaves."""
    max_tokens: int | None
    """Same as `max_new_tokens`."""
    tools: list[Tool] | list[dict[str, Any]] | None
    """Functions that the model may call, in OpenAI's form."""
    tool_choice: Literal["none", "auto", "required"] | NamedTool | dict[str, Any] | None
    """`auto` (the default with tools): the model decides; `required`: it must call; `none`: it must not; or the one
    function that it must call."""
    parallel_tool_calls: bool | None
    """False: at most one call; default true."""
    chat_template: str | None
    """Name of one of the model's chat templates; default: the server's choice. The text of one is taken only with
    `--trust-request-chat-template`."""
    chat_template_kwargs: dict[str, Any] | None
    """Values for the chat template by name, such as `enable_thinking`; a template reads those that it has."""
    add_generation_prompt: bool | None
    """False: the prompt ends with the last message, without the beginning of an answer; default true."""
    continue_final_message: bool | None
    """Continue the last message, an assistant's, instead of beginning an answer."""
    max_reasoning_tokens: int | None
    """Most tokens of the model's thinking: then its end is forced; default: no limit of its own."""
