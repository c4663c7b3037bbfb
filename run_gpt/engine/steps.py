"""One step of the model: a plan in, results out; and the message of a failure."""

import random

import torch

from run_gpt.config import EngineConfig
from run_gpt.engine.plan import Result, ScheduledTokens, Scores, Sequence, StepPlan, Sums
from run_gpt.engine.request import Request
from run_gpt.engine.runner import ModelRunner
from run_gpt.engine.sampler import Sampler
from run_gpt.engine.score import score_prompts
from run_gpt.engine.slots import Slot
from run_gpt.engine.text import TextStream
from run_gpt.engine.verify import choose_tokens


def run_step(plan: StepPlan, runner: ModelRunner, sampler: Sampler) -> tuple[list[Result], list[Sums], list[Scores]]:
    """Run a step. Returns the arguments of `commit`: sampled tokens, sums of pooled runs, scores of prompts.

    Nothing is sampled before the runner has done all: after an error the same random numbers are drawn again.
    """
    runner.release(plan.released)
    runner.copy(plan.copies)
    answering, pooled = [[run for run in plan.runs if run.pooled is which] for which in (False, True)]
    sums: list[Sums] = runner.embed(pooled).tolist() if pooled else []
    if not answering:
        return [], sums, []
    logits = runner.forward(answering)
    return choose_tokens(sampler, logits, answering), sums, score_prompts(logits, answering)


def try_alone(runner: ModelRunner) -> None:
    """Run a single token, without any request, in a runner that was reset. Raises the runner's error."""
    request = Request(id="", prompt_ids=(0,), max_new_tokens=1)
    sequence = Sequence(request, 0, TextStream(lambda ids: "", request.prompt_ids), random.Random(0), place=Slot(0))
    runner.forward([ScheduledTokens(sequence, 0, request.prompt_ids, num_logits=1)])
    runner.reset()


def describe_failure(error: BaseException, config: EngineConfig) -> str:
    """Return a message of one line about an error of the model, with a remedy if memory was short."""
    text = str(error).strip().split("\n")[0]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return (
            f"out of memory in the model: lower --max-cache-tokens (now {config.max_cache_tokens}), "
            f"--max-running (now {config.max_running}) or --max-context, or use a smaller --precision"
        )
    return f"the model failed: {type(error).__name__}: {text}"
