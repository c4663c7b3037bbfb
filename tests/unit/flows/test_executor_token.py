"""The token of a server's executors: without it other users of the machine could call the workers without a key."""

from run_gpt.config import EXECUTOR_TOKEN_VARIABLE, ServeConfig
from run_gpt.flows.server import new_supervisor, resolve


def test_each_start_has_a_token_for_its_gateway_and_its_workers_only() -> None:
    found = []
    for _ in range(2):
        supervisor = new_supervisor(resolve(ServeConfig(replicas=2, grpc_port=0, http_port=0)), lambda event: None)
        specs = [child.spec for child in supervisor._children]
        tokens = {spec.env[EXECUTOR_TOKEN_VARIABLE] for spec in specs}
        assert len(specs) == 3
        assert len(tokens) == 1
        token = str(*tokens)
        assert not any(token in text for spec in specs for text in (*spec.command, spec.stdin, repr(spec)))
        found.append(token)
    assert found[0] != found[1]
    assert min(map(len, found)) >= 40
