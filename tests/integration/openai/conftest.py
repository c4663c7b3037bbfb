"""OpenAI's published client on the shared server, and the same model in plain transformers for comparison."""

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from four_ways import FourWays

from run_gpt.config import ModelConfig
from run_gpt.models import LoadedModel, load

MODEL = "smollm2"


@pytest.fixture(scope="session")
def base_url(server: Any) -> str:
    """Return the base URL that users give to the client."""
    return f"{server.http_url}/v1"


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def ask(base_url: str) -> FourWays:
    """Return FourWays: each call sync and async, streamed and not."""
    return FourWays(base_url, MODEL)


@pytest.fixture(scope="session")
def plain() -> LoadedModel:
    """Load the server's model in fp32, in this process."""
    return load(ModelConfig(precision="fp32", device="cpu"))


@pytest.fixture(scope="session")
def scores(plain: LoadedModel) -> Callable[[list[int]], Any]:
    """Return a function that computes log-probabilities after each token, [tokens - 1, vocabulary], in one pass."""
    import torch

    def scores(ids: list[int]) -> Any:
        with torch.inference_mode():
            return plain.model(torch.tensor([ids]), use_cache=False).logits[0, :-1].float().log_softmax(-1)

    return scores


@pytest.fixture(scope="session")
def greedy(plain: LoadedModel) -> Callable[..., str]:
    """Return a function that gives the text of a number of tokens after a prompt, by transformers."""
    import torch

    def greedy(ids: list[int], tokens: int, *, frequency_penalty: float = 0, presence_penalty: float = 0) -> str:
        def penalise(all_ids: Any, rows: Any) -> Any:
            for token in set(answer := all_ids[0, len(ids) :].tolist()):
                rows[0, token] -= frequency_penalty * answer.count(token) + presence_penalty
            return rows

        options = {"max_new_tokens": tokens, "do_sample": False, "logits_processor": [penalise]}
        whole = plain.model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **options)
        return str(plain.tokenizer.decode(whole[0, len(ids) :]))

    return greedy
