"""Parity is the law: in fp32 and greedy, a request in a busy batch gives the tokens of `model.generate` alone."""

import asyncio
import copy

import pytest
import torch
import transformers

from run_gpt.config import EngineConfig
from run_gpt.engine.alone import AloneRunner
from run_gpt.engine.choice import choose_runner
from run_gpt.engine.engine import BatchEngine
from run_gpt.engine.generic import GenericRunner
from run_gpt.engine.llama import LlamaRunner
from run_gpt.engine.request import Request, SamplingParams
from run_gpt.errors import SetupError

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
    "Mistral": {**LLAMA, "sliding_window": None},
    "Qwen2": LLAMA,
    "Qwen3": {**LLAMA, "head_dim": 8},
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


@pytest.fixture(params=["auto", "generic", "alone"])
def engine(model, request):
    runner = request.param
    if runner == "generic" and model._is_stateful:
        pytest.skip("it has no key-value cache")
    config = EngineConfig(max_running=3, max_step_tokens=16, runner=runner)
    # A copy, since the fast runner takes the model's layers over.
    engine = BatchEngine(choose_runner(copy.deepcopy(model), config), lambda ids: "".join(f"{i} " for i in ids), config)
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


def test_the_fast_runner_is_chosen_where_it_is_right(model):
    fast = model.config.model_type in ("llama", "mistral", "qwen2", "qwen3")
    wanted = LlamaRunner if fast else AloneRunner if model._is_stateful else GenericRunner
    assert type(choose_runner(copy.deepcopy(model), EngineConfig())) is wanted
    if not fast:
        with pytest.raises(SetupError, match="--runner fast"):
            choose_runner(model, EngineConfig(runner="fast"))


def test_a_sliding_window_is_left_to_the_model_itself():
    config = transformers.MistralConfig(**{**LLAMA, "sliding_window": 8})
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert type(choose_runner(model, EngineConfig())) is GenericRunner


async def test_beam_search_is_that_of_generate(model, engine):
    prompt = prompts()[1]
    theirs = generate(model, prompt, num_beams=3, num_return_sequences=2, early_stopping=True, length_penalty=0.5)
    request = Request(
        id="b", prompt_ids=tuple(prompt), max_new_tokens=NEW_TOKENS, num_beams=3, sequences=2, length_penalty=0.5
    )
    texts = {event.index: event.text async for event in engine.submit(request)}
    ours = [[int(token) for token in texts[i].split()] for i in range(2)]
    assert [_until_end(tokens) for tokens in ours] == [_until_end(tokens) for tokens in theirs]
