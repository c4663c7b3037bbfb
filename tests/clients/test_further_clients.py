"""Further clients of OpenAI's API, which `make test-clients` runs: their users change the address only."""

from collections.abc import Callable

import pytest
from known import CLIENTS, Client

CASES = [(client, case) for client in CLIENTS if not client.most_used for case in client.cases]


@pytest.mark.parametrize(("client", "case"), CASES, ids=[f"{client.name}: {case}" for client, case in CASES])
def test_a_further_client(client: Client, case: str, run_case: Callable[[Client, str], None]) -> None:
    run_case(client, case)
