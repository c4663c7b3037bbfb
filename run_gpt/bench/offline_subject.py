"""What is measured: one model in this process, in one precision, by one runner; prefill, decode, memory, perplexity."""

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
from run_gpt.config import EngineConfig, ModelConfig, Runner
from run_gpt.errors import SetupError

RUNNERS = {"NativeRunner": "native", "LlamaRunner": "fast", "GenericRunner": "generic", "AloneRunner": "alone"}
KERNELS_THREAD = "rungpt-build"
WINDOW = 1024
LEAST_OVERLAP = 0.25
"""Share of the new tokens for which all streams must have run together, for a figure of decoding."""


@dataclass(frozen=True)
class Variant:
    """One way to run a model: precision and runner are those of `rungpt serve`."""

    model: str
    precision: str
    runner: Runner = "auto"
    compile: bool = False
    generate: bool = False
    """transformers' own `generate`, which RunGPT is compared with."""
    device: str | None = None
    max_running: int = 1

    @property
    def name(self) -> str:
        """Such as `bf16`, or `fp32, generic, compiled`."""
        return self.precision if self.by == "auto" else f"{self.precision}, {self.by}"

    @property
    def by(self) -> str:
        """What is to run it: a runner of RunGPT's, compiled or not, or transformers."""
        return "transformers" if self.generate else self.runner + (", compiled" if self.compile else "")

    def load(self) -> "Subject":
        """The thing itself; in this process. Raises SetupError or ModelNotFound."""
        from run_gpt.bench.offline_baseline import Baseline

        return Baseline(self) if self.generate else Subject(self)


class Subject:
    """A loaded variant."""

    def __init__(self, variant: Variant):
        """Raises SetupError or ModelNotFound if it cannot be loaded."""
        import torch
        import transformers  # noqa: F401  # its memory is not the model's

        import run_gpt.local.model  # noqa: F401

        self._cuda = torch.cuda.is_available() and (variant.device or "cuda").startswith("cuda")
        self._before = self._peak()
        self._load(variant)
        self._loading = self._peak()
        special = set(self._tokenizer.all_special_ids)
        self._ids = [id_ for id_ in range(len(self._tokenizer)) if id_ not in special]

    def _load(self, variant: Variant) -> None:
        from run_gpt.local.model import load_model

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
        """What was loaded: precision, runner, device, threads, context and cache in tokens (None: no limit)."""
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
        """Seconds of prefill and of a decode step, of `batch` prompts that differ with each `number`.

        Prefill is from the first submission until every stream has its first token. The same prompts then run again
        with a token more, from the cache where the runner keeps prefixes; a decode step is the time from where every
        stream has its first token until the first stream ends, over the tokens that one stream gets in it. Raises
        SetupError if the streams ran together for less than LEAST_OVERLAP of their tokens.
        """
        prefill, streams = self._run([self._prompt(number + i, prompt_tokens) for i in range(batch)], new_tokens)
        begun, ended = max(stream[0][0] for stream in streams), min(stream[-1][0] for stream in streams)
        decoded = sum(tokens for stream in streams for when, tokens in stream if begun < when <= ended) / batch
        if decoded < LEAST_OVERLAP * new_tokens:
            raise SetupError(f"{batch} streams of {prompt_tokens} tokens did not overlap: give more --new-tokens")
        return {"prefill": prefill, "decode_step": (ended - begun) / decoded}

    def warm_up(self, prompt_tokens: int, batch: int) -> None:
        """Run what a measurement would, with few new tokens: memory is touched, each kind of step is compiled."""
        self._run([self._prompt(f"warm-up {i}", prompt_tokens) for i in range(batch)], 4)

    def _run(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, list[list[tuple[float, int]]]]:
        """Seconds of the prompts' prefill, and what `_streams` says of their decoding."""
        start, first = asyncio.run(self._streams(prompts, 1))
        prefill = max(stream[0][0] for stream in first) - start
        # Whatever is kept is reused whole, in its place: with the same prompt it would be copied, and put others out.
        _, streams = asyncio.run(self._streams([[*ids, self._ids[0]] for ids in prompts], new_tokens))
        return prefill, streams

    def memory(self) -> dict[str, float]:
        """MB (10^6 bytes) by which the peak grew while the model was loaded, and until now."""
        return {"loading": (self._loading - self._before) / 1e6, "peak": (self._peak() - self._before) / 1e6}

    def perplexity(self, text: str, window: int | None, stride: int | None, max_tokens: int) -> dict[str, float]:
        """`perplexity` of the first `max_tokens` tokens of a text (0: all), `tokens` scored, `window` and `stride`.

        Windows have 1,024 tokens, or the context's, and strides half of a window, if they are not given. Raises
        SetupError for sizes that cannot be.
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
        """Token ids by chance, so that prompts have the same length with every tokenizer and no common beginning."""
        return random.Random(f"{name}, {tokens}").choices(self._ids, k=tokens)

    async def _streams(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, list[list[tuple[float, int]]]]:
        """When the streams began, and for each of them when its tokens came: (seconds, tokens) of each event."""
        from run_gpt.api.schema import GenerateRequest

        # As many tokens at least as at most: the end of sequence is held back.
        fields = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        requests = [GenerateRequest.parse({**fields, "prompt": ids}) for ids in prompts]
        # The engine's own requests: what writes answers is no part of these figures.
        prepared = [await self.model._preparation.text(request, None, None) for request in requests]

        async def stream(request: Any) -> list[tuple[float, int]]:
            async with aclosing(self._engine.submit(request)) as events:
                return [(time.perf_counter(), event.tokens) async for event in events if event.tokens]

        start = time.perf_counter()
        return start, await asyncio.gather(*(stream(request) for request in prepared))

    def _peak(self) -> int:
        """Most bytes in use so far: on the GPU if the model is there, else of the process."""
        import torch

        return torch.cuda.max_memory_allocated() if self._cuda else peak_bytes()


def peak_bytes() -> int:
    """Most memory that this process ever had in use."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's figure is also of the process that started this one, before it became this one
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _wait_for_kernels() -> None:
    """Until the native kernels are compiled, the first time on a machine: the generic runner serves meanwhile."""
    for thread in threading.enumerate():
        if thread.name == KERNELS_THREAD:
            thread.join()
