"""`rungpt generate`, `rungpt chat` and `rungpt embed`: with a model in this process, or against a server."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from run_gpt.api.answers import Generation
from run_gpt.api.embeddings import EmbedRequest
from run_gpt.api.schema import ChatRequest, GenerateRequest, Parameters
from run_gpt.cli import options
from run_gpt.config import ModelConfig, Panel
from run_gpt.errors import RequestError, SetupError

if TYPE_CHECKING:
    from run_gpt.api.language_model import LanguageModel

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The model, as `rungpt serve` takes it; with --endpoint, a name that the server serves.",
        rich_help_panel=Panel.MODEL,
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option("--endpoint", help="Ask this server, such as grpc://127.0.0.1:51000 or http://127.0.0.1:52000."),
]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0.001, help="Seconds to wait for the answer.")]
Stream = Annotated[bool, typer.Option("--stream/--no-stream", help="Print the answer as it comes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON: usage, log-probabilities, ...")]


@options.with_config(ModelConfig, "loading")
@options.with_parameters(GenerateRequest)
def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads it from stdin.")],
    model: ModelOption = None,
    endpoint: Endpoint = None,
    api_key: options.ApiKey = None,
    stream: Stream = True,
    as_json: AsJson = False,
    timeout: Timeout = None,
    loading: dict[str, Any] | None = None,
    parameters: dict[str, Any] | None = None,
) -> None:
    """Continue PROMPT and print the text."""
    parameters = parameters or {}
    text = sys.stdin.read() if prompt == "-" else prompt
    request = GenerateRequest.parse({**parameters, "prompt": text})  # report errors before a model is loaded
    _check_shown(request, as_json)
    with _open(model, endpoint, api_key, loading or {}) as opened:
        if _streams(stream and not as_json, request):
            _print_stream(opened.generate_stream(text, timeout=timeout, **parameters))
            return
        answer = opened.generate(text, timeout=timeout, **parameters)
        _print_answer([choice.text for choice in answer.choices], answer, as_json)


@options.with_config(ModelConfig, "loading")
@options.with_parameters(ChatRequest)
def chat(
    message: Annotated[str | None, typer.Argument(help="One message; without it, a conversation begins.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System message of the chat.")] = None,
    model: ModelOption = None,
    endpoint: Endpoint = None,
    api_key: options.ApiKey = None,
    stream: Stream = True,
    as_json: AsJson = False,
    timeout: Timeout = None,
    loading: dict[str, Any] | None = None,
    parameters: dict[str, Any] | None = None,
) -> None:
    """Chat with a model: one MESSAGE, or a conversation until Ctrl-D."""
    parameters = parameters or {}
    messages = [{"role": "system", "content": system}] if system else []
    request = ChatRequest.parse({**parameters, "messages": [*messages, {"role": "user", "content": message or "Hi"}]})
    _check_shown(request, as_json)

    def ask(opened: "LanguageModel") -> str:
        if _streams(stream and not as_json, request):
            return _print_stream(opened.chat_stream(messages, timeout=timeout, **parameters))
        answer = opened.chat(messages, timeout=timeout, **parameters)
        if not as_json:
            for choice in answer.choices:
                _tell_thought(choice.message.reasoning_content or "", end="\n\n")
        _print_answer([choice.message.content or "" for choice in answer.choices], answer, as_json)
        return answer.text

    with _open(model, endpoint, api_key, loading or {}) as opened:
        if message is not None:
            messages.append({"role": "user", "content": message})
            ask(opened)
            return
        print("A conversation with the model; Ctrl-D ends it.", file=sys.stderr)
        for line in _lines():
            messages.append({"role": "user", "content": line})
            try:
                messages.append({"role": "assistant", "content": ask(opened)})
            except RequestError as error:  # a failed request does not end the conversation
                messages.pop()
                print(f"rungpt: {error.message}", file=sys.stderr)


@options.with_config(ModelConfig, "loading")
def embed(
    texts: Annotated[list[str], typer.Argument(help="One text or several; - reads them from stdin, one a line.")],
    model: ModelOption = None,
    endpoint: Endpoint = None,
    api_key: options.ApiKey = None,
    pooling: Annotated[Literal["mean", "last"], typer.Option(help="Of all tokens, or of the last one.")] = "mean",
    use_adapter: Annotated[
        str | None, typer.Option("--use-adapter", help="A loaded adapter, or base for the model itself.")
    ] = None,
    timeout: Timeout = None,
    loading: dict[str, Any] | None = None,
) -> None:
    """Print a vector for each text, as one line of JSON."""
    if texts == ["-"]:
        texts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    EmbedRequest.parse({"texts": texts, "pooling": pooling, "adapter": use_adapter})
    with _open(model, endpoint, api_key, loading or {}) as opened:
        answer = opened.embed(texts, pooling=pooling, adapter=use_adapter, timeout=timeout)
    for vector in answer.vectors:
        print(json.dumps(vector))


@contextmanager
def _open(
    model: str | None, endpoint: str | None, api_key: str | None, loading: dict[str, Any]
) -> "Iterator[LanguageModel]":
    """Yield the model of the server at `endpoint`, or a model loaded in this process."""
    if endpoint is not None:
        from run_gpt.client import Client

        with Client(options.token(api_key)).get_model(model, endpoint=endpoint) as remote:
            yield remote
        return
    if api_key is not None:
        raise SetupError("--api-key: it is for a server; give its --endpoint, too")
    from run_gpt.cli.progress import progress_bars
    from run_gpt.local.create import create_model

    with progress_bars() as on_progress:
        local = create_model(model, on_progress=on_progress, **loading)
    for note in local.notes:
        print(note, file=sys.stderr)
    with local:
        yield local


def _check_shown(request: Parameters, as_json: bool) -> None:
    if request.logprobs is not None and not as_json:
        raise SetupError("--logprobs: only the whole answer shows them; add --json")


def _print_answer(texts: list[str], answer: Generation, as_json: bool) -> None:
    print(answer.to_json() if as_json else "\n".join(texts))
    if not as_json:
        _tell_timings(answer)


def _tell_timings(answer: Generation) -> None:
    """Print the timings of an answer on stderr if the request asked for them."""
    if answer.timings is not None:
        timings = answer.timings.model_dump().items()
        print(", ".join(f"{name} {round(value, 4):g}" for name, value in timings), file=sys.stderr)


def _streams(wanted: bool, request: Parameters) -> bool:
    """Return True to stream. Several sequences would arrive interleaved, and some requests cannot be streamed."""
    return wanted and request.sequences == 1 and not request.beam_search and not request.best_of


def _tell_thought(text: str, end: str = "") -> None:
    """Print thinking on stderr, dimmed in a terminal; it is no part of the result."""
    if text:
        dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
        print(f"{dim}{text}{plain}", end=end, file=sys.stderr, flush=True)


def _print_stream(events: Iterator[Any]) -> str:
    text = ""
    event = None
    thinking = False
    for event in events:
        if thought := getattr(event, "thought", ""):
            _tell_thought(thought)
            thinking = True
        if thinking and (event.text or event.choices[0].finish_reason):
            print("\n", file=sys.stderr, flush=True)
            thinking = False
        print(event, end="", flush=True)
        text += event.text
    print()
    if event is not None:
        _tell_timings(event)
    return text


def _lines() -> Iterator[str]:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line
