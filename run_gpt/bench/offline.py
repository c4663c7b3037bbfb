"""`rungpt bench model`: speed, memory and perplexity of a model in this machine's memory, in each precision.

Each variant (a precision; with `compile`, the generic runner without and with torch.compile) has a separate process.
The variants take turns in each round, after a warm-up that does not count, so that a busy minute of the machine affects
all of them. If a variant fails, its row gives the reason, and the others go on.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from run_gpt.bench.offline_process import Process
from run_gpt.bench.offline_subject import Variant
from run_gpt.bench.offline_texts import TEXTS, Text, fetch_text, read_text
from run_gpt.config import DEFAULT_MODEL, PRECISIONS, Precision
from run_gpt.errors import DownloadError, SetupError

Say = Callable[[str], None]
ALL_PRECISIONS = tuple(precision for precision in PRECISIONS if precision != "auto")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a measurement. Raises SetupError for invalid ones."""

    model: str = DEFAULT_MODEL
    """Model, in any form that `rungpt serve` takes."""
    precisions: tuple[Precision, ...] = ALL_PRECISIONS
    compile: tuple[Precision, ...] = ()
    """Precisions in which the generic runner is measured too, without and with torch.compile."""
    generate: tuple[Precision, ...] = ()
    """Precisions in which transformers' `generate` is measured too."""
    prompt_tokens: tuple[int, ...] = (128, 512)
    new_tokens: int = 64
    batches: tuple[int, ...] = (1, 4, 16)
    """Numbers of simultaneous streams."""
    repeat: int = 3
    """Number of rounds that count."""
    device: str | None = None
    one_by_one: bool = False
    """Load one variant at a time, for when they do not fit into memory together. They then take no turns."""
    data: tuple[str, ...] = tuple(TEXTS)
    """Names in TEXTS for measuring perplexity."""
    texts: tuple[Path, ...] = ()
    """Files for measuring perplexity."""
    window: int | None = None
    """Tokens of a window; default: 1024, or the model's context if that is shorter."""
    stride: int | None = None
    """Tokens between the starts of two windows; default: half of the window."""
    max_tokens: int = 16_384
    """Most tokens of each text; 0: all."""

    def __post_init__(self) -> None:
        for flag, chosen, known in (
            ("--precision", self.precisions, PRECISIONS),
            ("--compile", self.compile, PRECISIONS),
            ("--generate", self.generate, PRECISIONS),
            ("--data", self.data, tuple(TEXTS)),
        ):
            if unknown := [name for name in chosen if name not in known]:
                raise SetupError(f"{flag} {unknown[0]}: one of {', '.join(known)}")
        if not self.precisions and not self.compile and not self.generate:
            raise SetupError("--precision: there is nothing to measure")
        if not self.prompt_tokens or not self.batches or min(*self.prompt_tokens, *self.batches, self.repeat) < 1:
            raise SetupError("--prompt-tokens, --batch and --repeat: give numbers of at least 1")
        if self.new_tokens < 2:
            raise SetupError(f"--new-tokens {self.new_tokens}: a decode step needs at least 2")
        if self.max_tokens < 0:
            raise SetupError(f"--max-tokens {self.max_tokens}: give a number of tokens, or 0 for all")

    def variants(self) -> list[Variant]:
        """Return the variants, in the order of the table's rows."""
        more: dict[str, Any] = {"device": self.device, "max_running": max(self.batches)}
        return [
            *(Variant(self.model, precision, generate=True, **more) for precision in self.generate),
            *(Variant(self.model, precision, **more) for precision in self.precisions),
            *(
                Variant(self.model, precision, "generic", compiled, **more)
                for precision in self.compile
                for compiled in (False, True)
            ),
        ]

    def cases(self) -> list["Case"]:
        """Return the cases in which each variant is measured, in order."""
        return [Case(tokens, batch) for tokens in self.prompt_tokens for batch in self.batches]


@dataclass(frozen=True)
class Case:
    """Size of a measurement: tokens of each prompt, and number of simultaneous prompts."""

    prompt_tokens: int
    batch: int


@dataclass
class Result:
    """Results of one variant."""

    variant: Variant
    about: dict[str, Any] = field(default_factory=dict)
    """Result of Subject.about; empty if the variant could not be loaded."""
    rounds: dict[Case, list[dict[str, float]]] = field(default_factory=dict)
    """Results of Subject.measure, one for each round."""
    reasons: dict[Case, str] = field(default_factory=dict)
    """Reason why a case has no rounds, or fewer."""
    memory: dict[str, float] = field(default_factory=dict)
    perplexity: dict[str, dict[str, float]] = field(default_factory=dict)
    """Results of Subject.perplexity, by the text's name."""
    failed: str = ""
    """Reason why the measurement of this variant ended early; empty if it did not."""


@dataclass
class Report:
    """Results of all variants."""

    options: Options
    results: list[Result]
    texts: list[str]
    """Names of the texts on which perplexity was measured."""
    notes: list[str]
    """Notes on missing texts, one line each."""
    others: float
    """Most cores that other programs used during a measurement."""


def measure(options: Options, say: Say) -> Report:
    """Measure everything. `say` receives one line for each step. Raises SetupError for a text that cannot be read."""
    texts, notes = gather_texts(options, say)
    results = [Result(variant) for variant in options.variants()]
    others = 0.0
    for group in [[result] for result in results] if options.one_by_one else [results]:
        others = max(others, _measure_group(options, group, texts, say))
    return Report(options, results, [text.name for text in texts], notes, others)


def gather_texts(options: Options, say: Say) -> tuple[list[Text], list[str]]:
    """Return the available texts, and a line for each missing one. Raises SetupError for an unreadable user file."""
    texts, notes = [read_text(path) for path in options.texts], []
    for name in options.data:
        say(f"fetching {name}")
        try:
            texts.append(fetch_text(name))
        except DownloadError as error:
            notes.append(f"No perplexity on {name}: {error.message}")
            say(notes[-1])
    return texts, notes


def _measure_group(options: Options, results: list[Result], texts: list[Text], say: Say) -> float:
    """Fill these results, with all processes side by side. Returns the most cores that other programs used."""
    with ExitStack() as stack:
        running: list[tuple[Result, Process]] = []
        for result in results:
            say(f"loading {options.model} in {result.variant.name}")
            try:
                process = Process(result.variant)
            except SetupError as error:
                _fail(result, error.message, say)
                continue
            stack.callback(process.close)
            result.about = process.about
            running.append((result, process))
        _measure_speed(options, running, say)
        for result, process in running:
            if not result.failed:
                _finish(options, result, process, texts, say)
        return max((process.others for _, process in running), default=0.0)


def _measure_speed(options: Options, running: list[tuple[Result, Process]], say: Say) -> None:
    for result, process in running:
        _warm_up(options, result, process, say)
    numbers = count(step=max(options.batches))  # all prompts of a run differ
    for case in options.cases():
        for i in range(options.repeat):
            number = next(numbers)
            for result, process in running:
                if not result.failed and case not in result.reasons:
                    say(_step(case, f"{result.variant.name}, round {i + 1} of {options.repeat}"))
                    _one_round(options, result, process, case, number, say)


def _warm_up(options: Options, result: Result, process: Process, say: Say) -> None:
    """Note the cases that do not fit. Run the longest of the others at each batch, or all if steps are compiled."""
    for case in options.cases():
        if reason := _too_large(options, case, result.about):
            result.reasons[case] = reason
    fitting = [case for case in options.cases() if case not in result.reasons]
    longest = {case.batch: case for case in sorted(fitting, key=lambda case: case.prompt_tokens)}
    for case in fitting if result.variant.compile else longest.values():
        say(_step(case, f"{result.variant.name}, warm-up"))
        try:
            process.call("warm_up", prompt_tokens=case.prompt_tokens, batch=case.batch)
        except SetupError as error:
            return _fail(result, error.message, say)


def _too_large(options: Options, case: Case, about: dict[str, Any]) -> str:
    """Return the reason why a case does not fit, or an empty text."""
    tokens = case.prompt_tokens + 1 + options.new_tokens
    if tokens > about["context"]:
        return f"{tokens} tokens exceed the context of {about['context']}"
    if about["cache"] is not None and case.batch * tokens > about["cache"]:
        return f"{case.batch * tokens} tokens exceed the cache of {about['cache']}"
    return ""


def _one_round(options: Options, result: Result, process: Process, case: Case, number: int, say: Say) -> None:
    size = {"prompt_tokens": case.prompt_tokens, "batch": case.batch, "new_tokens": options.new_tokens}
    try:
        result.rounds.setdefault(case, []).append(process.call("measure", number=number, **size))
    except SetupError as error:
        result.reasons[case] = error.message
        say(f"{result.variant.name}: {error.message}")
        if not process.alive:
            _fail(result, error.message, say)


def _finish(options: Options, result: Result, process: Process, texts: list[Text], say: Say) -> None:
    """Measure memory, and perplexity for the runner that `rungpt serve` would choose."""
    try:
        result.memory = process.call("memory")
        for text in texts if result.variant.runner == "auto" else ():
            say(f"perplexity on {text.name}, {result.variant.name}")
            size = {"window": options.window, "stride": options.stride, "max_tokens": options.max_tokens}
            result.perplexity[text.name] = process.call("perplexity", text=text.content, **size)
    except SetupError as error:
        _fail(result, error.message, say)


def _fail(result: Result, reason: str, say: Say) -> None:
    result.failed = reason
    say(f"{result.variant.name}: {reason}")


def _step(case: Case, what: str) -> str:
    return f"prompts of {case.prompt_tokens} tokens, {case.batch} at once: {what}"
