"""Log-probabilities and vectors that are filled into JSON: the same JSON as of objects, at a fraction of the cost."""

import json
from typing import Any

import pytest

from run_gpt.api.answers import Answer
from run_gpt.api.embeddings import Embedding, Embeddings, EmbeddingUsage, floats
from run_gpt.api.endpoints import ENDPOINTS, Endpoint
from run_gpt.api.long_parts import Filled, Unread, restored
from run_gpt.api.native_stream import NativeStream
from run_gpt.api.pieces import Head, Likely, Parts, Piece, Token, tokens_part
from run_gpt.api.sse import body_event
from run_gpt.api.translated import TranslatedRequest
from run_gpt.gateway.stream_writer import StreamWriter

MESSAGES = [{"role": "user", "content": "x"}]
HEAD = Head("i", 1, "m", 2)
TEXTS: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "x", "logprobs": 1, "n": 2},
    "/chat": {"messages": MESSAGES, "logprobs": 1, "n": 2},
    "/v1/completions": {"prompt": ["x", "y"], "logprobs": 1, "n": 2},
    "/v1/chat/completions": {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1, "n": 2},
    "/v1/responses": {"input": "x", "top_logprobs": 1},
}


def token(text: str, logprob: float | None = -0.5) -> Token:
    data = list(text.encode())
    return Token(text, logprob, data, [Likely('\u00e9"', -1.25, list('\u00e9"'.encode()))] if logprob else [])


# A character of several tokens, a text that looks like JSON, and a first token without a log-probability.
PARTS: Parts = [
    tokens_part([token("a", None), token('"}]')]),
    tokens_part([Token("\ufffd", -0.25, [0xE2, 0x82]), Token("\ufffd", -0.75, [0xAC])]),
    tokens_part([token("end")]),
]


def loaded(body: Any) -> Any:
    """Return a body's JSON, without the names that are made anew for each answer."""
    text = body.to_json()
    return json.loads(text, object_hook=lambda fields: {k: v for k, v in fields.items() if k not in ("id", "item_id")})


def natives_of(request: Any) -> list[Any]:
    return list(request.natives()) if isinstance(request, TranslatedRequest) else [request]


def in_parts(native: Any, parts: Parts) -> tuple[Answer, list[Parts]]:
    """Return an answer as an executor gives it."""
    pieces = [Piece(index, "text", 5, "stop", logprobs=[]) for index in range(native.sequences)]
    return NativeStream(native, HEAD).whole(pieces), [list(parts) for _ in pieces]


def joined(request: Any, answers: list[Answer]) -> Any:
    return request.join(answers) if isinstance(request, TranslatedRequest) else answers[0]


@pytest.mark.parametrize("path", TEXTS)
@pytest.mark.parametrize("parts", [PARTS, []], ids=["some", "none"])
def test_whole_answers_are_as_those_of_objects(path: str, parts: Parts) -> None:
    request = ENDPOINTS[path].request.parse(TEXTS[path])
    natives, unread = natives_of(request), Unread(request)
    wholes, marked = [], []
    for which, native in enumerate(natives):
        answer, own = in_parts(native, parts)
        wholes.append(restored(native, *in_parts(native, parts)))
        unread.take(which, answer, own)
        marked.append(answer)
    filled = Filled(
        Answer, unread.fill(joined(request, marked).model_dump_json(exclude_unset=path[:3] == "/v1").encode())
    )
    expected = joined(request, wholes)
    if path == "/v1/responses":
        filled = Filled(Answer, unread_again(request, parts))
    assert loaded(filled) == loaded(expected)
    assert (b"end" in filled.json) == bool(parts)


def unread_again(request: Any, parts: Parts) -> bytes:
    """Return the filled JSON of a response, which has no unset fields."""
    unread, (native,) = Unread(request), natives_of(request)
    answer, own = in_parts(native, parts)
    unread.take(0, answer, own)
    return unread.fill(request.join([answer]).to_json().encode())


@pytest.mark.parametrize("path", TEXTS)
def test_events_are_as_those_of_objects(path: str) -> None:
    endpoint: Endpoint = ENDPOINTS[f"{path}_stream" if path[:3] != "/v1" else path]
    more = {"stream": True} if path[:3] == "/v1" else {}
    request = endpoint.request.parse({**TEXTS[path], **more})
    natives = natives_of(request)
    filled, objects = (StreamWriter(request, natives) for _ in range(2))  # type: ignore[arg-type]
    for which, native in enumerate(natives):
        filled.begin(which, HEAD)
        objects.begin(which, HEAD)
        for index in range(native.sequences):
            for i, part in enumerate([*PARTS, b""]):
                finish: Any = None if part else "stop"
                pieces = [Piece(index, f"{i}", 1, finish, logprobs=[part] if part else []) for _ in range(2)]
                written = filled.sse(which, pieces[0])
                assert events(written) == events(b"".join(map(body_event, objects.bodies(which, pieces[1]))))


def events(written: bytes) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in written.decode().splitlines() if line.startswith("data: ")]
    return [loaded(Filled(Answer, line.encode())) for line in lines]


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings"])
@pytest.mark.parametrize("form", ["float", "base64", None])
def test_vectors_are_given_as_they_were_asked_for(path: str, form: str | None) -> None:
    name = "texts" if path == "/embed" else "input"
    request = ENDPOINTS[path].request.parse({name: ["x", "y"], "encoding_format": form})
    (native,), unread = natives_of(request), Unread(request)
    parts = [[floats([0.5, -0.25])], [floats([0.1, 1e-9])]]

    def whole() -> Embeddings:
        data = [Embedding(index=index, embedding="") for index in range(2)]
        usage = EmbeddingUsage(prompt_tokens=2, total_tokens=2)
        return Embeddings(data=data, id="e", created=1, model="m", usage=usage)

    marked, expected = whole(), joined(request, [restored(native, whole(), parts)])
    unread.take(0, marked, parts)
    filled = Filled(Embeddings, unread.fill(joined(request, [marked]).to_json().encode()))
    assert loaded(filled) == loaded(expected)
    assert isinstance(loaded(filled)["data"][0]["embedding"], str if form == "base64" else list)
