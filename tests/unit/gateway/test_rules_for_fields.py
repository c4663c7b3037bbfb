"""`--strict-fields` and `--lenient-fields`: without these tests an option could be without an effect."""

from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from run_gpt.config import GatewayConfig, ServeConfig
from run_gpt.errors import SetupError
from run_gpt.flows.render import check_models
from run_gpt.gateway.http import build_app
from run_gpt.gateway.service import Service

HINT, UNKNOWN = {"verbosity": "low"}, {"colour": "red"}


@pytest.mark.parametrize(
    ("options", "refused"),
    [({}, [UNKNOWN]), ({"strict_fields": True}, [HINT, UNKNOWN]), ({"lenient_fields": True}, [])],
    ids=str,
)
async def test_a_server_has_one_of_three_rules(options: dict[str, Any], refused: list[Any]) -> None:
    pool = SimpleNamespace(replicas=[], ready=[], sure=[], retries=0, model="m", watched=True, context_length=1)
    pool.adapters = SimpleNamespace(applied=list)
    app = build_app(Service([cast("Any", pool)], GatewayConfig(**options)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for fields in (HINT, UNKNOWN):
            body = {"messages": [{"role": "user", "content": "x"}], "model": "no such", **fields}
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == (400 if fields in refused else 404), fields


def test_both_rules_are_refused() -> None:
    with pytest.raises(SetupError, match="--strict-fields and --lenient-fields"):
        check_models(ServeConfig(strict_fields=True, lenient_fields=True))
