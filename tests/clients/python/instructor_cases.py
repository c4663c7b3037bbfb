"""Instructor: objects by tools, by JSON and by a schema, and streams of parts of them."""

from typing import Literal

import instructor
import openai
from cases import BASE_URL, KEY, MODEL, PARIS, case, run
from pydantic import BaseModel

HI = [{"role": "user", "content": PARIS}]
ASKED = {"model": MODEL, "messages": HI, "max_tokens": 60, "max_retries": 1}


class City(BaseModel):
    """Name a city."""

    city: Literal["Paris", "Rome"]


def client(mode: instructor.Mode) -> instructor.Instructor:
    """Return a client of this mode."""
    return instructor.from_openai(openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0), mode=mode)


@case("tools")
def tools() -> None:
    assert client(instructor.Mode.TOOLS).create(response_model=City, **ASKED).city


@case("strict tools")
def strict() -> None:
    assert client(instructor.Mode.TOOLS_STRICT).create(response_model=City, **ASKED).city


@case("json_schema")
def schema() -> None:
    assert client(instructor.Mode.JSON_SCHEMA).create(response_model=City, **ASKED).city


@case("a stream of parts of an object")
def partial() -> None:
    *_, last = client(instructor.Mode.TOOLS).create_partial(response_model=City, **ASKED)
    assert last.city


@case("async")
async def asynchronous() -> None:
    inner = openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
    assert (await instructor.from_openai(inner).create(response_model=City, **ASKED)).city


run()
