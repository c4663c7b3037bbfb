"""The gateway's handlers: an endpoint without one would fail for every request."""

import pytest

from run_gpt.api.endpoints import ENDPOINTS, Endpoint, endpoint_of
from run_gpt.config import GatewayConfig
from run_gpt.gateway.service import Service


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=lambda endpoint: endpoint.path)
async def test_each_endpoint_has_a_handler(endpoint: Endpoint) -> None:
    service = Service([], GatewayConfig())
    assert (endpoint.handler in service._answers) >= (endpoint.answer is not None)
    assert (endpoint.handler in service._streams) >= (endpoint.event is not None)


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=lambda endpoint: endpoint.path)
def test_each_request_leads_to_one_endpoint(endpoint: Endpoint) -> None:
    request = endpoint.request.model_construct()
    assert endpoint.answer is None or endpoint_of(request, stream=False) is endpoint
    assert endpoint.event is None or endpoint_of(request, stream=True) is endpoint
