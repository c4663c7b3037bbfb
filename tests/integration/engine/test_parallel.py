"""Without these tests a model in shares could answer differently than the whole model, or leave processes behind."""

import asyncio
import ipaddress
import subprocess
import sys

import httpx
import psutil
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from run_gpt import create_model
from run_gpt.engine.request import Request
from run_gpt.errors import RequestError, SetupError, Unavailable

PROMPTS = [list(range(3 + i, 9 + 5 * i)) for i in range(5)]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this is about processes that share a CPU")


def save(model, folder):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(128)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w2").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=2,
    )
    return save(AutoModelForCausalLM.from_config(config), tmp_path_factory.mktemp("models") / "tiny")


def split(folder):
    return create_model(folder, precision="fp32", device="cpu", tensor_parallel=2, max_running=3, max_step_tokens=16)


def children():
    return [p for p in psutil.Process().children() if "run_gpt.local.follower" in p.cmdline()]


def listening():
    """Return the addresses on which this process and the other shares listen."""
    connections = [c for process in (psutil.Process(), *children()) for c in process.net_connections("inet")]
    addresses = [connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN]
    assert addresses
    return addresses


async def answer(model, name, prompt, **more):
    request = Request(id=name, prompt_ids=tuple(prompt), max_new_tokens=10, **more)
    text = "".join([event.text async for event in model._engine.submit(request)])
    return [int(word[1:]) for word in text.split()]


@pytest.fixture
def two_threads():
    """Let torch use two threads, which two shares divide; parallel workers of the tests have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
async def test_two_shares_answer_as_the_whole_and_leave_nobody_behind(folder):
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = await asyncio.to_thread(split, folder)
    try:
        scored = Request(id="scored", prompt_ids=tuple(PROMPTS[-1]), max_new_tokens=0, prompt_logprobs=1)
        [event] = [event async for event in model._engine.submit(scored)]
        weight = model._engine._runner._runner._model.model.layers[0].mlp.up_proj.weight
        assert weight.to_local().shape[0] == whole.model.layers[0].mlp.up_proj.weight.shape[0] // 2
        beams = answer(model, "beams", PROMPTS[0], num_beams=2)
        got = await asyncio.gather(*(answer(model, str(i), p) for i, p in enumerate(PROMPTS)), beams)
        assert {host for host in listening() if not ipaddress.ip_address(host).is_loopback} == set()
        assert "".join(chunk.choices[0].text for chunk in model.generate_stream("w5 w6 w7", max_new_tokens=4))
    finally:
        await model.aclose()
    with torch.inference_mode():
        likely = whole(torch.tensor([PROMPTS[-1]])).logits[0].log_softmax(-1)
    for place, score in enumerate(event.prompt_logprobs):
        assert score.logprob == pytest.approx(float(likely[place, PROMPTS[-1][place + 1]]), abs=1e-3)
        assert score.top[0][0] == int(likely[place].argmax())
    assert place == len(PROMPTS[-1]) - 2
    assert len({tuple(tokens) for tokens in got}) > 3  # answers that vary
    for tokens, prompt, more in zip(got, [*PROMPTS, PROMPTS[0]], [{}] * 5 + [{"num_beams": 2}], strict=True):
        ids, extra = torch.tensor([prompt]), {"early_stopping": True} if more else {}
        out = whole.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10, **more, **extra
        )
        assert tokens == [token for token in out[0, len(prompt) :].tolist() if token != 2]
    assert not children()
    assert torch.get_num_threads() == 2


async def test_a_share_that_is_killed_ends_the_engine(folder):
    model = await asyncio.to_thread(split, folder)
    try:
        [child] = children()
        child.kill()
        while model.status().state != "dead":
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="dead"):
            await answer(model, "late", PROMPTS[0])
    finally:
        await model.aclose()
    assert not children()


async def test_a_call_that_fails_here_alone_ends_the_engine(folder, monkeypatch):
    """Check a call that leaves the other process waiting within it: its data must not go into the next call."""
    model = await asyncio.to_thread(split, folder)
    try:
        assert await answer(model, "first", PROMPTS[0])
        layer = model._engine._runner._runner._model.model.layers[1]
        monkeypatch.setattr(layer, "forward", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(RequestError):
            await answer(model, "failing", PROMPTS[1])
        monkeypatch.undo()
        with pytest.raises(RequestError):
            await answer(model, "late", PROMPTS[0])
        while model.status().state != "dead":
            await asyncio.sleep(0.01)
    finally:
        await model.aclose()
    assert not children()


async def test_a_signal_to_all_lets_running_requests_finish(folder):
    """Check SIGTERM to every process, as service managers send it: the other processes wait for the first one."""
    model = await asyncio.to_thread(split, folder)
    try:
        [child] = children()
        child.terminate()
        assert await answer(model, "running", PROMPTS[0])
        assert child.is_running()
    finally:
        await model.aclose()
    assert not children()


def test_a_server_of_two_shares_answers_and_ends(folder, start_server):
    options = ("--precision", "fp32", "--device", "cpu", "--tensor-parallel", "2")
    with start_server(folder, *options) as server:
        assert sum("run_gpt.local.follower" in process.cmdline() for process in server.processes()) == 1
        body = {"prompt": "w5 w6 w7", "max_new_tokens": 4, "min_new_tokens": 4}
        answer = httpx.post(f"{server.http_url}/generate", json=body, timeout=60).json()
        assert answer["usage"]["completion_tokens"] == 4


def test_the_shares_end_with_a_process_that_is_killed(folder):
    code = (
        "import sys, run_gpt; "
        "model = run_gpt.create_model(sys.argv[1], precision='fp32', device='cpu', tensor_parallel=2); "
        "print('loaded', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "loaded\n"
        others = psutil.Process(first.pid).children()
        assert any("run_gpt.local.follower" in other.cmdline() for other in others)
        first.kill()
    assert psutil.wait_procs(others, timeout=30)[1] == []


def test_what_cannot_be_split_says_so(folder, tmp_path):
    config = BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=128)
    bloom = save(BloomForCausalLM(config), tmp_path / "bloom")
    with pytest.raises(SetupError, match=r"no plan to split bloom.*llama"):
        create_model(bloom, device="cpu", tensor_parallel=2)
    with pytest.raises(SetupError, match=r"4 attention heads and 2 of keys"):
        create_model(folder, device="cpu", tensor_parallel=4)
    with pytest.raises(SetupError, match="--tensor-parallel must be at least 1, not 0"):
        create_model(folder, device="cpu", tensor_parallel=0)
    with pytest.raises(SetupError, match="--runner native"):
        create_model(folder, device="cpu", tensor_parallel=2, runner="native")
    assert not children()
