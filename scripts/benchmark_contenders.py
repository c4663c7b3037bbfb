"""Contenders of scripts/engine_benchmark.py, each in its process: RunGPT's engine and transformers' `generate`."""

import asyncio
import os
import time
import uuid
from dataclasses import dataclass
from typing import Any, cast

Ids = list[int]

PEERS_PROMPT = "Once upon a time, in a land far away,"
PASSAGE = (
    "The harbour lies in the north of the island. Every morning at six the ferry Margarethe leaves it with mail, milk "
    "and about forty passengers, most of whom work in the cannery on the other side of the sound. The crossing takes "
    "fifty minutes when the weather is good, and two hours when it is not. In winter the ferry is often the only thing "
    "that moves on the water, and the people of the island say that they know the sound of its engine better than the "
    "voices of their own children."
)


@dataclass(frozen=True)
class Contender:
    """One column of the table. `precision` and `runner` are those of `rungpt serve`."""

    model: str
    precision: str
    runner: str | None
    """None: transformers' `generate`."""
    max_running: int = 64
    threads: int | None = None
    speculate: bool = False

    def load(self) -> "Prompts":
        """Load the contender in this process."""
        return TransformersGenerate(self) if self.runner is None else RunGPTEngine(self)


class Prompts:
    """Prompts by number, so that every contender gets the same ones, each once."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def short(self, number: int) -> Ids:
        """Return a prompt of 10 tokens. Its number has three digits, so all 900 prompts have the same length."""
        return self._ids(self.short_text(number))[:10]

    @staticmethod
    def short_text(number: int) -> str:
        """Return the text of `short`."""
        return f"{100 + number % 900} years ago, in a far land"

    def long(self, number: int, tokens: int) -> Ids:
        """Return a prompt of `tokens` tokens; its first tokens differ from those of all other long prompts."""
        return self._ids(f"{1000 + number} " + "word " * tokens)[:tokens]

    def many(self, number: int, streams: int, same: bool) -> list[Ids]:
        """Return the prompts of concurrent streams."""
        return [self._ids(PEERS_PROMPT) if same else self.short(number + i) for i in range(streams)]

    def repetitive(self, number: int) -> Ids:
        """Return a chat whose answer repeats a passage."""
        from run_gpt.models import render_chat

        content = f"Text {number}: {PASSAGE}\n\nRepeat the text above word for word."
        ids: Ids = render_chat(self.tokenizer, [{"role": "user", "content": content}])
        return ids

    def _ids(self, text: str) -> Ids:
        return cast("Ids", self.tokenizer(text)["input_ids"])


class TransformersGenerate(Prompts):
    """The baseline: the model as transformers loads it, one padded batch, `generate`."""

    def __init__(self, contender: Contender):
        from run_gpt.config import ModelConfig
        from run_gpt.models import load

        before = prepared(contender)
        loaded = load(ModelConfig(model_name=contender.model, precision=contender.precision))
        super().__init__(loaded.tokenizer)
        self.model = loaded.model
        self.name = f"transformers `generate`, {loaded.precision}"
        self.memory = resident_bytes() - before

    def streams(self, number: int, streams: int, new_tokens: int, same: bool) -> dict[str, float]:
        """Tokens per second: whole requests, and decode steps alone."""
        return self._rates(self.many(number, streams, same), new_tokens)

    def contexts(self, number: int, streams: int, tokens: int, new_tokens: int) -> dict[str, float]:
        """The same after long prompts."""
        return self._rates([self.long(number + i, tokens) for i in range(streams)], new_tokens)

    def prefill(self, number: int, tokens: int) -> dict[str, float]:
        """Tokens per second of one long prompt."""
        first, _ = self._generate([self.long(number, tokens)], 1)
        return {"prefill": tokens / first}

    def first_token(self, number: int, tokens: int, tail: int) -> dict[str, float]:
        """Milliseconds until the first token of a long prompt."""
        first, _ = self._generate([self.long(number, tokens) + self.long(0, tail)], 1)
        return {"cold": 1000 * first}

    def _rates(self, prompts: list[Ids], new_tokens: int) -> dict[str, float]:
        first, end = self._generate(prompts, new_tokens)
        count = len(prompts)
        return {"whole": count * new_tokens / end, "decode": count * (new_tokens - 1) / (end - first)}

    def _generate(self, prompts: list[Ids], new_tokens: int) -> tuple[float, float]:
        """Return the seconds until every sequence has its first token, and until the end."""
        import torch

        if len({len(ids) for ids in prompts}) > 1:
            raise ValueError("this tokenizer does not make the same number of tokens of each prompt")
        ids = torch.tensor(prompts, device=self.model.device)
        steps: list[float] = []

        def note(so_far: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
            steps.append(time.perf_counter())
            return torch.zeros(len(so_far), dtype=torch.bool, device=so_far.device)

        start = time.perf_counter()
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            stopping_criteria=[note],
        )
        return steps[0] - start, time.perf_counter() - start


@dataclass
class _Stream:
    """Arrival times of one stream's tokens: (seconds, tokens) for each event."""

    events: list[tuple[float, int]]

    @property
    def first(self) -> float:
        """Moment of the first token, in seconds."""
        return self.events[0][0]

    def after(self, moment: float) -> int:
        """Count the tokens that came later than `moment`."""
        return sum(tokens for seconds, tokens in self.events if seconds > moment)


class RunGPTEngine(Prompts):
    """The engine of `rungpt serve` behind its interface: requests of token ids in, token events out."""

    def __init__(self, contender: Contender):
        from run_gpt.config import EngineConfig, ModelConfig
        from run_gpt.local.create import load_model

        before = prepared(contender)
        config = EngineConfig(
            max_running=contender.max_running,
            runner=cast("Any", contender.runner),
            speculate=contender.speculate,
        )
        model = load_model(ModelConfig(model_name=contender.model, precision=contender.precision), config)
        super().__init__(model.tokenizer)
        self.engine = model._engine
        self.name = f"RunGPT, {model.precision}" + ("" if contender.runner == "auto" else f", {contender.runner}")
        self.memory = resident_bytes() - before

    def streams(self, number: int, streams: int, new_tokens: int, same: bool) -> dict[str, float]:
        """Tokens per second: whole requests, and decode steps alone."""
        return self._rates(self.many(number, streams, same), new_tokens)

    def contexts(self, number: int, streams: int, tokens: int, new_tokens: int) -> dict[str, float]:
        """The same after long prompts."""
        return self._rates([self.long(number + i, tokens) for i in range(streams)], new_tokens)

    def prefill(self, number: int, tokens: int) -> dict[str, float]:
        """Tokens per second of one long prompt."""
        return {"prefill": tokens / self._first(self.long(number, tokens))}

    def first_token(self, number: int, tokens: int, tail: int) -> dict[str, float]:
        """Milliseconds until the first token of a long prompt, and of the same one with another last part."""
        prefix = self.long(number, tokens)
        cold = self._first(prefix + self.long(0, tail))
        reused = self._first(prefix + self.long(1, tail))
        return {"cold": 1000 * cold, "reused": 1000 * reused, "share": reused / cold}

    def repetition(self, number: int, new_tokens: int) -> dict[str, float]:
        """Tokens per second of one stream that repeats its prompt, and the share of drafted tokens that were right."""
        before = self.engine.stats()
        rate = self._rates([self.repetitive(number)], new_tokens)["decode"]
        after = self.engine.stats()
        drafted = after.drafted_tokens - before.drafted_tokens
        return {"rate": rate, "accepted": (after.accepted_tokens - before.accepted_tokens) / max(drafted, 1)}

    def _first(self, ids: Ids) -> float:
        start = time.perf_counter()
        return asyncio.run(self._stream(ids, 1)).first - start

    def _rates(self, prompts: list[Ids], new_tokens: int) -> dict[str, float]:
        """Return the rates. `decode` counts the tokens after every stream has its first one, over that time."""

        async def run() -> list[_Stream]:
            return await asyncio.gather(*(self._stream(ids, new_tokens) for ids in prompts))

        start = time.perf_counter()
        streams = asyncio.run(run())
        end = time.perf_counter()
        all_begun = max(stream.first for stream in streams)
        decoded = sum(stream.after(all_begun) for stream in streams)
        return {"whole": len(prompts) * new_tokens / (end - start), "decode": decoded / (end - all_begun)}

    async def _stream(self, ids: Ids, new_tokens: int) -> _Stream:
        from run_gpt.engine.request import Request, SamplingParams

        # The least number of tokens equals the most: the end of sequence is held back.
        request = Request(
            id=uuid.uuid4().hex,
            prompt_ids=tuple(ids),
            max_new_tokens=new_tokens,
            sampling=SamplingParams(min_new_tokens=new_tokens),
        )
        stream = _Stream([])
        async for event in self.engine.submit(request):
            if event.tokens:
                stream.events.append((time.perf_counter(), event.tokens))
        if (count := sum(tokens for _, tokens in stream.events)) != new_tokens:
            raise ValueError(f"a stream ended after {count} tokens, not {new_tokens}")
        return stream


def prepared(contender: Contender) -> int:
    """Return the bytes in use with all modules and the tokenizer, without the model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    import run_gpt.local.create  # noqa: F401
    from run_gpt.config import ModelConfig
    from run_gpt.models import fetch

    if contender.threads is not None:
        torch.set_num_threads(contender.threads)
    folder = fetch(ModelConfig(model_name=contender.model)).folder
    AutoTokenizer.from_pretrained(folder)
    with torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return resident_bytes()


def resident_bytes() -> int:
    """Return the resident memory of this process, in bytes."""
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)
