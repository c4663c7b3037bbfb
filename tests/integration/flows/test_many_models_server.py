"""Without these tests, the end of one model could end another. A whole server runs several models that load nothing."""

import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from test_pod import LIMIT, with_toys
from test_supervisor import is_alive, wait_until

from run_gpt.config import ServeConfig, ServedModel
from run_gpt.flows import Server, server
from run_gpt.flows.render import render_flow

MODELS = (ServedModel(model_name="a/small"), ServedModel(model_name="b/large", replicas=2, preload=False))


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the server's own Flow, but with pods that load nothing."""

    def render(config: ServeConfig, **form: Any) -> str:
        return yaml.safe_dump(with_toys(render_flow(config, **form)))

    monkeypatch.setattr(server, "render_flow", render)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_each_replica_of_each_model_is_a_process_that_is_started_again_by_itself() -> None:
    with Server(ServeConfig(models=MODELS, grpc_port=0, http_port=0)) as running:
        before = running.pids()
        assert list(before) == ["worker 0 (small)", "worker 1 (large)", "worker 2 (large)", "gateway"]
        told = httpx.get(f"{running.http_url}/ready").json()
        assert [(name, len(addresses)) for name, addresses in told.items()] == [("causal_lm_0", 1), ("causal_lm_1", 2)]

        os.kill(before["worker 1 (large)"], signal.SIGKILL)
        after = wait_until(lambda: restarted(running, before["worker 1 (large)"]), LIMIT)
        assert {name: pid for name, pid in after.items() if name != "worker 1 (large)"} == {
            name: pid for name, pid in before.items() if name != "worker 1 (large)"
        }
    assert not any(is_alive(pid) for pid in after.values())


def restarted(running: Server, dead: int) -> dict[str, int] | None:
    """Return the processes once another one has replaced the dead one, else None."""
    pids = running.pids()
    return pids if pids.get("worker 1 (large)", dead) != dead else None
