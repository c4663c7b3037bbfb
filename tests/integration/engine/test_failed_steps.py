"""A step that fails half-way must leave the answers of the others as they would have been, with every runner."""

import asyncio

import pytest
from families import FAMILIES, build

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.request import Request, TokenEvent
from run_gpt.engine.runners.alone import AloneRunner
from run_gpt.engine.runners.generic import GenericRunner
from run_gpt.engine.runners.llama import LlamaRunner
from run_gpt.errors import InternalError

RUNNERS = {
    "generic": lambda: GenericRunner(build(FAMILIES["llama"])),
    "fast": lambda: LlamaRunner(build(FAMILIES["llama"]), 8),
    "alone": lambda: AloneRunner(build(FAMILIES["mamba"])),
}
PROMPTS = [tuple(range(20 + i, 20 + i + size)) for i, size in enumerate((3, 40, 9, 21))]
TOKENS = 12


async def answered(runner, asked):
    engine = BatchEngine(
        runner, lambda ids: "".join(f"{i} " for i in ids), EngineConfig(max_running=8, max_step_tokens=16)
    )

    async def answer(request):
        total = TokenEvent(0, "", 0)
        async for event in engine.submit(request):
            total += event
        return total.text

    answers = await asyncio.gather(*map(answer, asked), return_exceptions=True)
    engine.scheduler.check()
    await asyncio.to_thread(engine.shutdown)
    return answers


@pytest.mark.parametrize("name", RUNNERS)
async def test_answers_are_the_same_though_a_sequence_among_them_breaks_the_model(name):
    asked = [Request(id=str(i), prompt_ids=ids, max_new_tokens=TOKENS) for i, ids in enumerate(PROMPTS)]
    right = await answered(RUNNERS[name](), asked)
    runner = RUNNERS[name]()
    forward = runner.forward

    def failing(runs):
        logits = forward(runs)  # the cache has changed when it fails
        if any(run.sequence.request.id == "bad" and run.end > 14 for run in runs):
            raise IndexError("index out of range in self")
        return logits

    runner.forward = failing
    bad = Request(id="bad", prompt_ids=(5,) * 10, max_new_tokens=TOKENS)
    answers = await answered(runner, [*asked[:2], bad, *asked[2:]])
    assert isinstance(answers.pop(2), InternalError)
    assert answers == right
