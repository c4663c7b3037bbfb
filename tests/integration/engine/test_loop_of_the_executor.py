"""No request takes an executor's event loop for longer than 20 ms: all other streams would wait for it.

The endpoints of the inner wire run here on the loop of the test, over a tiny model in which each byte is a token.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_watchdog import installed

from run_gpt.config import AdminConfig, EngineConfig, HostConfig, ModelConfig
from run_gpt.errors import RequestError
from run_gpt.executors.causal_lm.host import Host
from run_gpt.executors.causal_lm.link import LinkEndpoints
from run_gpt.executors.causal_lm.service import ModelService
from run_gpt.executors.causal_lm.spans import Spans
from run_gpt.link.frames import Start
from run_gpt.link.serving import Reply

if str(Path(__file__).parents[3]) not in sys.path:
    sys.path.append(str(Path(__file__).parents[3]))
from studies.campaign.model import write_byte_model

USER = {"role": "user", "content": "x"}
LONG = {"prompt": "Once", "min_new_tokens": 1000, "max_new_tokens": 1000}


def hostile(name: str, path: str, body: dict[str, Any], count: int = 1) -> Any:
    """Return a case of `count` requests at once."""
    return pytest.param(path, body, count, id=name)


CASES = [
    hostile("log-probabilities", "/generate", {**LONG, "logprobs": 20}),
    hostile("log-probabilities of many answers", "/generate", {**LONG, "logprobs": 20, "n": 8}),
    hostile("streamed log-probabilities", "/generate_stream", {**LONG, "logprobs": 20}, count=4),
    hostile("scored prompt", "/generate", {"prompt": "x" * 3000, "echo": True, "logprobs": 20}),
    hostile("a long answer", "/generate", LONG, count=4),
    hostile("streams", "/generate_stream", {**LONG, "min_new_tokens": 300, "max_new_tokens": 300}, count=16),
    hostile("many answers", "/generate", {"prompt": "x", "n": 16, "temperature": 1.0, "max_new_tokens": 200}),
    hostile("a long text", "/generate", {"prompt": "7" * 500_000, "max_new_tokens": 1}),
    hostile("a long text to tokenise", "/tokenize", {"prompt": "7 " * 100_000}),
    hostile("many ids", "/generate", {"prompt": [5] * 500_000, "max_new_tokens": 1}),
    hostile("many ids to a text", "/detokenize", {"tokens": [5] * 500_000}),
    hostile("many messages", "/chat", {"messages": [USER] * 20_000, "max_new_tokens": 1}),
    hostile("many texts", "/embed", {"texts": ["once upon a time"] * 200}),
    hostile("stop texts", "/generate", {**LONG, "stop": ["never " * 20] * 4}),
    hostile("biases", "/generate", {**LONG, "logit_bias": {str(i): 1.0 for i in range(256)}}),
]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = write_byte_model(tmp_path_factory.mktemp("model"))
    config = ModelConfig(model_name=str(folder), precision="fp32")
    loaded = Host(config, EngineConfig(max_running=16), HostConfig(), on_dead=lambda: None)
    yield loaded
    loaded.close()


async def run(endpoints: LinkEndpoints, path: str, body: bytes) -> None:
    """Answer a request; a refusal is an answer, too."""
    try:
        await endpoints(Start(stream=1, path=path, body=body, request_id="x", trace={}), Reply(1, lambda reply: None))
    except RequestError:
        return


@pytest.mark.parametrize(("path", "body", "count"), CASES)
async def test_a_request_does_not_hold_the_loop(
    host: Host, tmp_path: Path, path: str, body: dict[str, Any], count: int
) -> None:
    endpoints, content = LinkEndpoints(ModelService(host, Spans(None), AdminConfig())), json.dumps(body).encode()
    small = {"prompt": "x", "max_new_tokens": 2, "logprobs": 1}
    await run(endpoints, "/generate_stream", json.dumps(small).encode())  # imports modules
    with installed(tmp_path / "slow") as watchdog:
        await asyncio.sleep(0)  # the test's own callback began before
        await asyncio.gather(*(asyncio.create_task(run(endpoints, path, content)) for _ in range(count)))
        await asyncio.sleep(0)
    assert not watchdog.news()
