"""Models with layers of several kinds: without true positions their answers drift after a few tokens."""

import asyncio
import copy

import torch
from families import FAMILIES, Family, build

from run_gpt.config import EngineConfig
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.request import Request
from run_gpt.engine.runners.choice import choose_runner

CONFIG = {
    **{**FAMILIES["llama"].config, "attn_layer_indices": [1], "eos_token_id": None},
    **{"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8},
}


async def test_a_model_whose_first_layer_has_no_cache_gives_the_tokens_of_generate_alone() -> None:
    model = build(Family("Bamba", CONFIG, scale=4))
    config = EngineConfig(max_running=3, max_step_tokens=16)
    prompts = [torch.arange(5, 5 + length).tolist() for length in (3, 17, 30, 60)]
    alone = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
        alone.append(out[0, len(prompt) :].tolist())
    runner = choose_runner(copy.deepcopy(model), config, stateful=True)
    engine = BatchEngine(runner, lambda ids: "".join(f"{i} " for i in ids), config)

    async def run(name: str, prompt: list[int]) -> list[int]:
        request = Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=20)
        return [int(token) for token in "".join([e.text async for e in engine.submit(request)]).split()]

    try:
        assert await asyncio.gather(*(run(str(i), prompt) for i, prompt in enumerate(prompts))) == alone
    finally:
        engine.shutdown()
