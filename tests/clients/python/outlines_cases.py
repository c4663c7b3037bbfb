"""Outlines: the modes for OpenAI's API and for vLLM's, which sends `structured_outputs`."""

from typing import Literal

import openai
import outlines
from cases import BASE_URL, KEY, MODEL, PARIS, case, run
from pydantic import BaseModel

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)


class City(BaseModel):
    """A form for answers."""

    city: Literal["Paris", "Rome"]


@case("openai: text, a stream and a schema")
def as_openai() -> None:
    model = outlines.from_openai(client, MODEL)
    assert model(PARIS, max_tokens=8)
    assert "".join(model.stream(PARIS, max_tokens=8))
    assert City.model_validate_json(model(PARIS, City, max_tokens=30))


@case("vllm: text, a schema, a choice, a regular expression")
def as_vllm() -> None:
    model = outlines.from_vllm(client, MODEL)
    assert model(PARIS, max_tokens=8)
    assert City.model_validate_json(model(PARIS, City, max_tokens=30))
    assert model(PARIS, Literal["Paris", "Rome"], max_tokens=8) in ("Paris", "Rome")
    assert model(PARIS, outlines.regex("[0-9]{4}"), max_tokens=8).isdigit()


@case("vllm: a grammar is refused by its name")
def grammar() -> None:
    model = outlines.from_vllm(client, MODEL)
    said = ""
    try:
        model(PARIS, outlines.cfg('start: "Paris" | "Rome"'), max_tokens=8)
    except outlines.exceptions.BadRequestError as error:
        said = str(error)
    assert "grammar" in said


@case("vllm: a stream")
def stream() -> None:
    assert "".join(outlines.from_vllm(client, MODEL).stream(PARIS, Literal["Paris", "Rome"], max_tokens=8))


run()
