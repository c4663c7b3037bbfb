"""Parity is the law: in fp32 and greedy, a request in a busy batch gives the tokens of `model.generate` alone."""

import asyncio

import pytest
import torch
import transformers

from run_gpt.config import EngineConfig
from run_gpt.engine.choice import choose_runner
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.request import Request, SamplingParams

SIZE = {"vocab_size": 128, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    **SIZE,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **SIZE}
FAMILIES = {
    "Llama": LLAMA,
    "Mistral": LLAMA,
    "Qwen2": LLAMA,
    "Gemma": {**LLAMA, "head_dim": 8},
    "GPTNeoX": {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"},
    "GPT2": GPT2,
    "GPTJ": {**GPT2, "rotary_dim": 4},
    "OPT": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 32,
        **SIZE,
    },
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, **SIZE},
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, **SIZE},
    "Mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256, **SIZE},
}
REQUESTS = 7
NEW_TOKENS = 12


def build(family):
    """A tiny model with random weights, large enough that its tokens vary."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


def prompts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 128, (3 + 5 * i,), generator=generator).tolist() for i in range(REQUESTS)]


def generate(model, prompt, **options):
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, **options
        )
    return out[:, ids.shape[1] :].tolist()


async def run(engine, name, prompt, **more):
    text = ""
    request = Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=NEW_TOKENS, **more)
    async for event in engine.submit(request):
        text += event.text
    return [int(token) for token in text.split()]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return build(request.param)


@pytest.fixture
def engine(model):
    engine = BatchEngine(
        choose_runner(model), lambda ids: "".join(f"{i} " for i in ids), EngineConfig(max_running=3, max_step_tokens=16)
    )
    yield engine
    engine.shutdown()
    engine.scheduler.check()


async def test_a_busy_batch_gives_the_tokens_of_generate_alone(model, engine):
    texts = prompts()
    alone = [generate(model, prompt)[0] for prompt in texts]
    assert len({tuple(tokens) for tokens in alone}) > 1
    # More requests than slots, so that rows join while others are in the middle and leave at different times.
    busy = await asyncio.gather(*(run(engine, str(i), prompt) for i, prompt in enumerate(texts)))
    assert [_until_end(tokens) for tokens in busy] == [_until_end(tokens) for tokens in alone]


async def test_every_sequence_of_a_request_gives_the_tokens_of_generate_alone(model, engine):
    """The sequences share one run of the prompt, which here takes several steps, beside another request."""
    prompt = prompts()[-1]
    request = Request(id="n", prompt_ids=tuple(prompt), max_new_tokens=NEW_TOKENS, sequences=2)
    other = asyncio.create_task(run(engine, "other", prompts()[0]))
    texts = ["", ""]
    async for event in engine.submit(request):
        texts[event.index] += event.text
    await other
    alone = _until_end(generate(model, prompt)[0])
    assert [_until_end([int(token) for token in text.split()]) for text in texts] == [alone, alone]


async def test_penalties_give_the_tokens_of_generate_alone(model, engine):
    prompt = prompts()[2]
    sampling = SamplingParams(repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=5)
    ours = await run(engine, "a", prompt, sampling=sampling)
    theirs = generate(model, prompt, repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=5)[0]
    assert _until_end(ours) == _until_end(theirs)


def _until_end(tokens):
    return tokens[: tokens.index(2)] if 2 in tokens else tokens
