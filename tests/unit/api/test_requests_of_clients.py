"""Requests that other people's clients sent (`tests/clients`), against the schemas.

A field that is refused stops a client.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from run_gpt.api.endpoints import ENDPOINTS
from run_gpt.api.translated import TranslatedRequest
from run_gpt.errors import InvalidRequest

FOLDER = Path(__file__).parents[2] / "clients" / "data" / "requests"
ALL: list[tuple[str, dict[str, Any]]] = [
    (f"{file.stem}-{number}", request)
    for file in sorted(FOLDER.glob("*.json"))
    for number, request in enumerate(json.loads(file.read_text()))
]
REFUSED = ("structured_outputs", "grammar")
"""A field of vLLM's and its part that is refused by name."""
IMAGE = '"type": "image"'
"""Part of a body that is refused by name."""
BODIES = [pytest.param(request, id=name) for name, request in ALL if isinstance(request["body"], dict)]


@pytest.mark.parametrize("recorded", BODIES)
def test_a_clients_request_is_taken_or_refused_by_name(recorded: dict[str, Any]) -> None:
    if REFUSED[1] in recorded["body"].get(REFUSED[0], {}):
        with pytest.raises(InvalidRequest, match=REFUSED[1]):
            ENDPOINTS[recorded["path"]].request.parse(recorded["body"])
        return
    if IMAGE in json.dumps(recorded["body"]):
        with pytest.raises(InvalidRequest, match="image"):
            ENDPOINTS[recorded["path"]].request.parse(recorded["body"])
        return
    request = ENDPOINTS[recorded["path"]].request.parse(recorded["body"])
    assert not isinstance(request, TranslatedRequest) or request.natives()


def test_every_clients_requests_are_there() -> None:
    assert len(BODIES) > 100
