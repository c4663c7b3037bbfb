"""Spaces of what is kept of requests: two users in one space could read each other's prompts by `cached_tokens`."""

from itertools import combinations

import pytest

from run_gpt.api.embeddings import EmbedRequest
from run_gpt.api.openai.chat import ChatCompletionRequest
from run_gpt.api.openai.completions import CompletionRequest
from run_gpt.api.openai.embeddings import EmbeddingRequest
from run_gpt.api.openai.responses import ResponseRequest
from run_gpt.api.request import AnyRequest
from run_gpt.api.schema import ChatRequest, GenerateRequest
from run_gpt.errors import InvalidRequest
from run_gpt.process import tenants

CHAT = {"messages": [{"role": "user", "content": "x"}]}
NATIVE: list[tuple[type[AnyRequest], dict[str, object]]] = [
    (GenerateRequest, {"prompt": "x"}),
    (ChatRequest, CHAT),
    (EmbedRequest, {"texts": "x"}),
]
OPENAI: list[tuple[type[AnyRequest], dict[str, object]]] = [
    (CompletionRequest, {"prompt": ["x", "y"]}),
    (ChatCompletionRequest, CHAT),
    (ResponseRequest, {"input": "x"}),
    (EmbeddingRequest, {"input": ["x", "y"]}),
]


def test_no_two_pairs_of_key_and_salt_have_the_same_space() -> None:
    pairs = [(key, salt) for key in ("", "a", "a.b", "default") for salt in (None, "a", "/", "a/", "default/a", "//")]
    spaces = []
    for key, salt in pairs:
        tenants.current.set(key)
        spaces.append(tenants.space(salt))
    assert not [pair for pair in combinations(spaces, 2) if pair[0] == pair[1]]
    assert spaces[0] == "", "without keys and salts nothing changes"


@pytest.mark.parametrize(("kind", "fields"), [*NATIVE, *OPENAI], ids=lambda value: getattr(value, "__name__", ""))
def test_every_request_with_a_prompt_takes_a_salt_and_passes_it_on(
    kind: type[AnyRequest], fields: dict[str, object]
) -> None:
    request = kind.parse({**fields, "cache_salt": "s3cret"})
    natives = request.natives() if hasattr(request, "natives") else [request]
    assert [native.cache_salt for native in natives] == ["s3cret"] * len(natives)
    for wrong in ("", "x" * 513, 7):
        with pytest.raises(InvalidRequest, match="cache_salt"):
            kind.parse({**fields, "cache_salt": wrong})
