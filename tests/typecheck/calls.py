"""Calls that type checkers accept or refuse. `make typecheck` reads this file as a module of run_gpt.

An ignored error that is none is an error itself, so a wrong keyword cannot pass unnoticed.
"""

from typing import assert_type

from run_gpt import create_model
from run_gpt.api.answers import ChatAnswer, GenerateAnswer
from run_gpt.client import Client
from run_gpt.client.model import Model


async def right(model: Model) -> None:
    """Call with the parameters that there are."""
    assert_type(model.generate("x", max_tokens=4, stop="a", timeout=1, echo=True), GenerateAnswer)
    assert_type(model.generate([[1, 2]], temperature=0.5, response_format={"type": "text"}), list[GenerateAnswer])
    tool = {"type": "function", "function": {"name": "f"}}
    assert_type(model.chat("x", tools=[tool], tool_choice="auto", request_id="a"), ChatAnswer)
    assert_type(await model.agenerate("x", seed=1, logit_bias={"5": 1.0}), GenerateAnswer)
    create_model("smollm2", None, None, "fp32", max_running=2, runner="generic").close()


async def wrong(model: Model) -> None:
    """Call with misspelt parameters, with those of another call, and with wrong types."""
    model.generate("x", max_token=4)  # type: ignore[call-overload]
    model.generate_stream("x", tools=[])  # type: ignore[call-arg]
    model.chat("x", temperature="hot")  # type: ignore[arg-type]
    model.chat_stream("x", echo=True)  # type: ignore[call-arg]
    await model.achat("x", sed=1)  # type: ignore[call-arg]
    Client().get_model(endpoint="grpc://localhost").generate("x", tok_p=0.5)  # type: ignore[call-overload]
    create_model("smollm2", max_runing=1)  # type: ignore[call-arg]
    create_model("smollm2", max_running="1")  # type: ignore[arg-type]
