"""Baseline for comparison with RunGPT: the model as loaded by transformers, with `generate` on one padded batch."""

import time
from typing import Any

from run_gpt.bench.offline_subject import Subject, Variant
from run_gpt.bench.perplexity import Score, windows
from run_gpt.config import ModelConfig


class Baseline(Subject):
    """A variant run by transformers' own `generate` and forward pass, with the methods of Subject."""

    def _load(self, variant: Variant) -> None:
        from run_gpt.models import load

        self._loaded = load(ModelConfig(model_name=variant.model, precision=variant.precision, device=variant.device))
        self._tokenizer = self._loaded.tokenizer

    def about(self) -> dict[str, Any]:
        """See Subject."""
        import torch

        return {
            "precision": self._loaded.precision,
            "runner": "transformers",
            "device": self._loaded.device,
            "threads": torch.get_num_threads(),
            "context": self._loaded.context_length,
            "cache": None,
        }

    def measure(self, number: int, prompt_tokens: int, batch: int, new_tokens: int) -> dict[str, float]:
        """See Subject. Nothing is kept from prefill, so one run measures both."""
        start, steps = self._generate([self._prompt(number + i, prompt_tokens) for i in range(batch)], new_tokens)
        return {"prefill": steps[0] - start, "decode_step": (steps[-1] - steps[0]) / (len(steps) - 1)}

    def warm_up(self, prompt_tokens: int, batch: int) -> None:
        """See Subject."""
        self._generate([self._prompt(f"warm-up {i}", prompt_tokens) for i in range(batch)], 4)

    def _generate(self, prompts: list[list[int]], new_tokens: int) -> tuple[float, list[float]]:
        """Return the start time, and the time at which each step had its tokens."""
        import torch

        model: Any = self._loaded.model
        ids = torch.tensor(prompts, device=model.device)
        steps: list[float] = []

        def note(so_far: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
            steps.append(time.perf_counter())
            return torch.zeros(len(so_far), dtype=torch.bool, device=so_far.device)

        start = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            stopping_criteria=[note],
        )
        return start, steps

    def _score(self, ids: list[int], window: int, stride: int) -> Score:
        """Score with the model's own forward pass, on the same windows as the engine."""
        import torch

        model: Any = self._loaded.model
        total, count = 0.0, 0
        with torch.inference_mode():
            for part in windows(len(ids), window, stride):
                tokens = torch.tensor(ids[part.start : part.end], device=model.device)
                logits = model(input_ids=tokens[None], use_cache=False).logits[0, -part.scored - 1 : -1]
                losses = torch.nn.functional.cross_entropy(logits.float(), tokens[-part.scored :], reduction="none")
                total, count = total + float(losses.double().sum()), count + part.scored
        return Score(count, total)
