"""magentic: functions whose results the model gives."""

from typing import Literal

from cases import BASE_URL, KEY, MODEL, PARIS, case, run
from magentic import OpenaiChatModel, StreamedStr, prompt
from pydantic import BaseModel

model = OpenaiChatModel(MODEL, api_key=KEY, base_url=BASE_URL, max_tokens=60, temperature=0)


class City(BaseModel):
    """Name a city."""

    city: Literal["Paris", "Rome"]


@prompt(PARIS, model=model)
def text() -> str:
    """Return a text."""


@prompt(PARIS, model=model)
def stream() -> StreamedStr:
    """Return parts of a text."""


@prompt(PARIS, model=model)
def city() -> City:
    """Return an object, which the model gives as a call."""


@case("text, a stream, an object")
def texts() -> None:
    assert "Paris" in text()
    assert "Paris" in "".join(stream())
    assert city().city


run()
