"""A model in this process, in one precision and by one runner: its prefill, decode, memory and perplexity."""

import asyncio
import random
import resource
import sys
import threading
import time
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from run_gpt.bench.perplexity import Score, check_sizes, score
from run_gpt.config import EngineConfig, ModelConfig, Precision, Runner
from run_gpt.errors import SetupError

RUNNERS = {"NativeRunner": "native", "LlamaRunner": "fast", "GenericRunner": "generic", "AloneRunner": "alone"}
KERNELS_THREAD = "rungpt-build"
WINDOW = 1024
LEAST_OVERLAP = 0.25
"""Least share of the new tokens that must be decoded while all streams run, for a valid decode figure."""


@dataclass(frozen=True)
class Variant:
    """One way to run a model: precision and runner are those of `rungpt serve`."""

    model: str
    precision: Precision
    runner: Runner = "auto"
    compile: bool = False
    generate: bool = False
    """True for transformers' own `generate`, with which RunGPT is compared."""
    device: str | None = None
    max_running: int = 1

    @property
    def name(self) -> str:
        """Name such as `bf16`, or `fp32, generic, compiled`."""
        return self.precision if self.by == "auto" else f"{self.precision}, {self.by}"

    @property
    def by(self) -> str:
        """Name of its runner (with `compiled`, if so), or `transformers`."""
        return "transformers" if self.generate else self.runner + (", compiled" if self.compile else "")

    def load(self) -> "Subject":
        """Load the variant in this process. Raises SetupError or ModelNotFound."""
        from run_gpt.bench.offline_baseline import Baseline

        return Baseline(self) if self.generate else Subject(self)


class Subject:
    """A loaded variant."""

    def __init__(self, variant: Variant):
        """Load the variant. Raises SetupError or ModelNotFound if this fails."""
        import torch
        import transformers  # noqa: F401  # imported first, so that its memory does not count as the model's

        import run_gpt.local.create  # noqa: F401

        self._cuda = torch.cuda.is_available() and (variant.device or "cuda").startswith("cuda")
        self._before = self._peak()
        self._load(variant)
        self._loading = self._peak()
        special = set(self._tokenizer.all_special_ids)
        self._ids = [id_ for id_ in range(len(self._tokenizer)) if id_ not in special]

    def _load(self, variant: Variant) -> None:
        from run_gpt.local.create import load_model

        self.model = load_model(
            ModelConfig(model_name=variant.model, precision=variant.precision, device=variant.device),
            EngineConfig(
                max_running=variant.max_running,
                runner=variant.runner,
                compile=variant.compile,
                speculate=False,
            ),
        )
        _wait_for_kernels()
        self._tokenizer = self.model.tokenizer
        self._engine = cast("Any", self.model._engine)

    def about(self) -> dict[str, Any]:
        """Describe the loaded model: precision, runner, device, threads; context and cache (tokens; None: no limit)."""
        import torch

        name = type(self._engine._runner).__name__
        return {
            "precision": self.model.precision,
            "runner": RUNNERS.get(name, name),
            "device": str(self.model.device),
            "threads": torch.get_num_threads(),
            "context": self.model.context_length,
            "cache": self._engine.scheduler.slots.max_tokens,
        }

    def measure(self, number: int, prompt_tokens: int, batch: int, new_tokens: int) -> dict[str, float]:
        """Return the seconds of prefill and of a decode step for `batch` prompts, which differ with each `number`.

        Prefill lasts from the first submission until every stream has its first token. Then the same prompts run again
        with one token more, from the KV cache if the runner keeps prefixes. A decode step is the time from the moment
        at which every stream has its first token to the end of the first stream, divided by the tokens of one stream
        in that time. Raises SetupError if the streams ran together for less than LEAST_OVERLAP of their tokens.
        """
        prefill, streams = self._run([self._prompt(number + i, prompt_tokens) for i in range(batch)], new_tokens)
        begun, ended = max(stream[0][0] for stream in streams), min(stream[-1][0] for stream in streams)
        decoded = sum(tokens for stream in streams for when, tokens in stream if begun < when <= ended) / batch
        if decoded < LEAST_OVERLAP * new_tokens:
            raise SetupError(f"{batch} streams of {prompt_tokens} tokens did not overlap: give more --new-tokens")
        return {"prefill": prefill, "decode_step": (ended - begun) / decoded}

    def warm_up(self, prompt_tokens: int, batch: int) -> None:
        """Run a measurement's prompts with few new tokens: this touches memory and compiles each kind of step."""
        self._run([self._prompt(f"warm-up {i}", prompt_tokens) for i in range(batch)], 4)

    def _run(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, list[list[tuple[float, int]]]]:
        """Return the seconds of prefill, and the decode events as returned by `_streams`."""
        start, first = asyncio.run(self._streams(prompts, 1))
        prefill = max(stream[0][0] for stream in first) - start
        # A longer prompt reuses its kept prefix in place. The same prompt would be copied, which would evict others.
        _, streams = asyncio.run(self._streams([[*ids, self._ids[0]] for ids in prompts], new_tokens))
        return prefill, streams

    def memory(self) -> dict[str, float]:
        """Return the growth of the memory peak in MB (10^6 bytes): while the model was loaded, and until now."""
        return {"loading": (self._loading - self._before) / 1e6, "peak": (self._peak() - self._before) / 1e6}

    def perplexity(self, text: str, window: int | None, stride: int | None, max_tokens: int) -> dict[str, float]:
        """Score the first `max_tokens` tokens of a text (0: all): `perplexity`, scored `tokens`, `window` and `stride`.

        The default window is 1,024 tokens, or the context if that is shorter; the default stride is half of the window.
        Raises SetupError for invalid sizes.
        """
        ids = self._tokenizer(text, verbose=False)["input_ids"]
        context = self.about()["context"]
        window = window or min(WINDOW, context)
        stride = stride or max(window // 2, 1)
        ids = ids[:max_tokens] if max_tokens else ids
        check_sizes(len(ids), window, stride, context)
        scored = self._score(ids, window, stride)
        return {"perplexity": scored.perplexity, "tokens": scored.tokens, "window": window, "stride": stride}

    def _score(self, ids: list[int], window: int, stride: int) -> Score:
        return asyncio.run(score(self.model, ids, window, stride))

    def _prompt(self, name: int | str, tokens: int) -> list[int]:
        """Return random token ids, so that prompts have the same length with every tokenizer and no common prefix."""
        return random.Random(f"{name}, {tokens}").choices(self._ids, k=tokens)

    async def _streams(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, list[list[tuple[float, int]]]]:
        """Return the start time, and for each stream the (seconds, tokens) of each of its events."""
        from run_gpt.api.schema import GenerateRequest

        # A minimum equal to the maximum suppresses the end of sequence.
        fields = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        requests = [GenerateRequest.parse({**fields, "prompt": ids}) for ids in prompts]
        # Submitted to the engine directly: writing answers is not part of these figures.
        prepared = [await self.model._preparation.text(request, None, None) for request in requests]

        async def stream(request: Any) -> list[tuple[float, int]]:
            async with aclosing(self._engine.submit(request)) as events:
                return [(time.perf_counter(), event.tokens) async for event in events if event.tokens]

        start = time.perf_counter()
        return start, await asyncio.gather(*(stream(request) for request in prepared))

    def _peak(self) -> int:
        """Return the peak of memory in bytes: of the GPU if the model is on one, else of the process."""
        import torch

        return torch.cuda.max_memory_allocated() if self._cuda else peak_bytes()


def peak_bytes() -> int:
    """Return the peak of this process's memory in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure includes the parent process before exec
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _wait_for_kernels() -> None:
    """Wait until the native kernels are compiled (once on a machine). Until then the generic runner would serve."""
    for thread in threading.enumerate():
        if thread.name == KERNELS_THREAD:
            thread.join()
