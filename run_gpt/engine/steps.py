"""One step of the model: a plan in, results out; and the message of a failure."""

import torch

from run_gpt.config import EngineConfig
from run_gpt.engine.plan import Result, Scores, StepPlan, Sums
from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.sampler import Sampler
from run_gpt.engine.score import score_prompts
from run_gpt.engine.verify import choose_tokens


def run_step(plan: StepPlan, runner: ModelRunner, sampler: Sampler) -> tuple[list[Result], list[Sums], list[Scores]]:
    """Run a step. Returns the arguments of `commit`: sampled tokens, sums of pooled runs, scores of prompts."""
    runner.release(plan.released)
    runner.copy(plan.copies)
    answering, pooled = [[run for run in plan.runs if run.pooled is which] for which in (False, True)]
    results: list[Result] = []
    scores: list[Scores] = []
    if answering:
        logits = runner.forward(answering)
        results, scores = choose_tokens(sampler, logits, answering), score_prompts(logits, answering)
    return results, runner.embed(pooled).tolist() if pooled else [], scores


def describe_failure(error: BaseException, config: EngineConfig) -> str:
    """Return a message of one line about an error of the model, with a remedy if memory was short."""
    text = str(error).strip().split("\n")[0]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return (
            f"out of memory in the model: lower --max-cache-tokens (now {config.max_cache_tokens}), "
            f"--max-running (now {config.max_running}) or --max-context, or use a smaller --precision"
        )
    return f"the model failed: {type(error).__name__}: {text}"
