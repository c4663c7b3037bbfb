"""Nothing of a request stays in an executor: a server that runs for months would grow without end."""

import asyncio
import gc
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from run_gpt.config import AdminConfig, EngineConfig, HostConfig, ModelConfig
from run_gpt.executors.causal_lm.host import Host
from run_gpt.executors.causal_lm.link import LinkEndpoints
from run_gpt.executors.causal_lm.service import ModelService
from run_gpt.executors.causal_lm.spans import Spans
from run_gpt.link.frames import Start
from run_gpt.link.serving import Reply

if str(Path(__file__).parents[3]) not in sys.path:
    sys.path.append(str(Path(__file__).parents[3]))
from studies.campaign.model import write_byte_model

CHAT = {"messages": [{"role": "user", "content": "x"}], "max_new_tokens": 2}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"prompt": "Once", "max_new_tokens": 2}),
    ("/generate_stream", {"prompt": "Once", "max_new_tokens": 3, "temperature": 1.0}),
    ("/chat", {**CHAT, "logprobs": 2}),
    ("/chat_stream", {**CHAT, "response_format": {"type": "json_object"}}),
    ("/embed", {"texts": ["once", "upon"]}),
    ("/tokenize", {"prompt": "once upon a time"}),
]
REQUESTS = 90


async def ask(endpoints: LinkEndpoints, first: int) -> int:
    """Make REQUESTS requests with ids of their own; return the number of Python's blocks of memory afterwards."""
    for number in range(first, first + REQUESTS, len(KINDS)):
        starts = [
            Start(number + i, path, json.dumps(body).encode(), f"id-{number + i}", {}, f"tenant-{i}")
            for i, (path, body) in enumerate(KINDS)
        ]
        await asyncio.gather(*(asyncio.create_task(endpoints(one, Reply(1, lambda _: None))) for one in starts))
    await asyncio.sleep(0)
    gc.collect()
    return sys.getallocatedblocks()


async def test_no_object_of_a_request_stays(tmp_path: Path) -> None:
    config = ModelConfig(model_name=str(write_byte_model(tmp_path)), precision="fp32")
    host = Host(config, EngineConfig(max_running=8), HostConfig(), on_dead=lambda: None)
    try:
        endpoints = LinkEndpoints(ModelService(host, Spans(None), AdminConfig()))
        held = [await ask(endpoints, turn * REQUESTS) for turn in range(5)]
    finally:
        host.close()
    growth = min(after - before for before, after in pairwise(held))
    assert growth < REQUESTS // 2, "caches fill up in some turns, but not in all"
