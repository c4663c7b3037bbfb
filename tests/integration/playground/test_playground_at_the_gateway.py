"""Without these tests, the playground could use what the real gateway lacks, or a stop could fail to reach it."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect
from visiting import PHONE
from waiting import wait_until

KEY = "the-playgrounds-own-key-0123456789"


@pytest.fixture
def keyed_stack(a_stack: Any, tmp_path: Any, free_ports: Callable[[int], list[int]]) -> Iterator[Any]:
    """Yield a real gateway that requires KEY."""
    with a_stack(tmp_path, free_ports(3), 1, {}, "ready", {"RUNGPT_API_KEY": KEY}) as running:
        yield running


def script(**fields: Any) -> str:
    return json.dumps(fields)


def test_an_answer_comes_through_the_real_gateway(stack: Any, visit: Any) -> None:
    v = visit(stack.http)
    assert v.ask(script(words=["**Hello**", " from", " here"])) == "Hello from here"
    expect(v.answer.locator("strong")).to_have_text("Hello")
    expect(v.page.locator(".figures")).to_contain_text("3 tokens")
    v.check_quiet()


def test_an_answer_grows_while_it_comes(stack: Any, visit: Any) -> None:
    v = visit(stack.http)
    v.send(script(words=300, delay=0.02))
    expect(v.answer).to_contain_text("1")
    early = len(v.answer.inner_text())
    expect(v.answer).to_contain_text("40")
    assert len(v.answer.inner_text()) > early
    v.page.keyboard.press("Escape")
    v.wait_idle()


def test_stop_frees_the_servers_slot(stack: Any, visit: Any) -> None:
    v = visit(stack.http)
    v.send(script(words=["Half"], then="hang"))
    expect(v.answer).to_have_text("Half")
    assert stack.ready()["in_flight"] > 0
    v.page.click("#stop-answer")
    wait_until(lambda: stack.ready()["in_flight"] == 0)
    wait_until(lambda: stack.journal[-1][0] == "cancelled")
    expect(v.page.locator(".note")).to_have_text("Stopped")
    v.check_quiet()


def test_leaving_the_page_frees_the_servers_slot(stack: Any, visit: Any) -> None:
    v = visit(stack.http)
    v.send(script(words=["Half"], then="hang"))
    expect(v.answer).to_have_text("Half")
    v.page.close()
    wait_until(lambda: stack.ready()["in_flight"] == 0)


def test_the_servers_errors_are_shown(stack: Any, visit: Any) -> None:
    error = {"message": "the queue is full", "type": "rate_limit_error", "param": None, "code": "queue_full"}
    v = visit(stack.http)
    v.ask(script(words=[], then="error", error=error))
    expect(v.page.locator(".error")).to_contain_text("the queue is full")
    v.ask(script(words=["Half"], then="error", error={**error, "message": "the replica is gone"}))
    expect(v.answer).to_have_text("Half")
    expect(v.page.locator(".error").last).to_contain_text("the replica is gone")
    v.check_quiet(expected=("429",))


def test_a_field_that_the_server_refuses_is_named(stack: Any, visit: Any) -> None:
    v = visit(stack.http)
    v.page.fill("#stop", "\n".join(map(str, range(17))))
    v.ask(script(words=["never"]))
    expect(v.page.locator(".error")).to_contain_text("stop")
    expect(v.page.locator("#stop")).to_have_attribute("aria-invalid", "true")


def test_the_page_says_where_it_is(stack: Any, visit: Any) -> None:
    """GET / links to the playground, for users who only have the address of the server."""
    assert httpx.get(stack.http).json()["playground"] == "/playground"


def test_the_default_model_answers_on_a_phone(server: Any, visit: Any) -> None:
    v = visit(server.http_url, viewport=PHONE, has_touch=True, is_mobile=True)
    v.page.tap("#toggle-settings")
    v.page.fill("#temperature", "0")
    v.page.tap("#close-settings")
    assert "Paris" in v.ask("What is the capital of France?")
    expect(v.page.locator(".figures")).to_contain_text("tokens/s")
    v.check_quiet()


@pytest.mark.parametrize("way", ["prompt", "address"])
def test_a_browser_that_was_given_the_key_can_chat(keyed_stack: Any, visit: Any, way: str) -> None:
    """A key typed into the browser's question, or into the address, must reach the page's own requests as well."""
    if way == "prompt":
        v = visit(keyed_stack.http, http_credentials={"username": "me", "password": KEY})
    else:
        v = visit(keyed_stack.http.replace("//", f"//me:{KEY}@"))
    assert v.ask(script(words=["Hello"])) == "Hello"
    v.check_quiet(expected=("401",))  # Chromium logs each answer that asks for a password
