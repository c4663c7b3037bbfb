"""Scoring as lm-evaluation-harness does it. Without these tests, benchmarks could be wrong."""

from typing import Any

import pytest
import requests

QUESTIONS = [
    ("The capital of France is", (" Paris", " a banana")),
    ("Two plus two is", (" purple elephants", " four")),
    ("The sun rises in the", (" east", " soup of the day")),
]


def tokenized(base_url: str, text: str) -> list[int]:
    answer = requests.post(f"{base_url.removesuffix('/v1')}/tokenize", json={"prompt": text}, timeout=60)
    return list(answer.json()["tokens"])


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_loglikelihoods_choose_as_plain_transformers_does(base_url: str, scores: Any, max_tokens: int) -> None:
    """The request and the reading of its answer are those of `--model local-completions`."""
    contexts = [(tokenized(base_url, text), text, ends) for text, ends in QUESTIONS]
    pairs = [(context, tokenized(base_url, text + end)) for context, text, ends in contexts for end in ends]
    body = {
        "model": "smollm2",
        "prompt": [whole for _, whole in pairs],
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = requests.post(f"{base_url}/completions", json=body, timeout=120).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(pairs)))
    sums = []
    for (context, whole), choice in zip(pairs, answer["choices"], strict=True):
        read = slice(len(context), -1 if max_tokens else None)
        logprobs = choice["logprobs"]["token_logprobs"][read]
        rows = scores(whole)[len(context) - 1 :]
        ids = whole[len(context) :]
        assert logprobs == pytest.approx([row[i].item() for row, i in zip(rows, ids, strict=True)], abs=1e-3)
        top = choice["logprobs"]["top_logprobs"][read]
        tokens = choice["logprobs"]["tokens"][read]
        greedy = all(max(likeliest, key=likeliest.get) == token for likeliest, token in zip(top, tokens, strict=True))
        assert greedy == all(int(row.argmax()) == i for row, i in zip(rows, ids, strict=True))
        sums.append(sum(logprobs))
    chosen = [ends[sums[2 * i + 1] > sums[2 * i]] for i, (_, ends) in enumerate(QUESTIONS)]
    assert chosen == [" Paris", " four", " east"]
