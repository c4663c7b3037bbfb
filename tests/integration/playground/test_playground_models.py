"""Without these tests, users might not be able to choose a model, see its state, or see why an answer is late."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from scripted_server import DONE, event, piece, refusing, saying, usage
from waiting import wait_until

from run_gpt import models

NOTE_LOADS = """() => {
  window.__loads = [];
  new MutationObserver(() => {
    const shown = document.querySelector(".reply .loading");
    if (shown) window.__loads.push(shown.textContent);
  }).observe(document.body, { subtree: true, childList: true });
}"""


@pytest.fixture
def two(scripted: Any) -> Any:
    """Return the scripted server with two models; `tiny` is not in memory."""
    scripted.models, scripted.states = ["smollm2", "tiny"], {"tiny": "unloaded"}
    return scripted


def being_loaded(scripted: Any, *, ends: bool = True) -> Any:
    """Return a load that stays at 43 % until the test calls `go_on.set()`."""

    async def load(_: dict[str, Any]) -> AsyncIterator[bytes]:
        yield event({"state": "loading", "step": "Waiting for memory", "done": None, "total": None})
        yield event({"state": "loading", "step": "Loading tiny", "done": 437, "total": 1000})
        await scripted.wait()
        if ends:
            yield event({"state": "loaded", "step": None, "done": None, "total": None})

    return load


def after_the_load(scripted: Any) -> Any:
    """Return an answer that waits for that load."""

    async def script(_: dict[str, Any]) -> AsyncIterator[bytes]:
        await scripted.wait()
        while scripted.running > 1:  # the load reports its end first
            await asyncio.sleep(0.01)
        scripted.states = {}
        yield piece("Hello")
        yield piece(finish="stop")
        yield usage(1)
        yield DONE

    return script


async def until(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.01)


def options(v: Any) -> list[str]:
    return list(v.page.locator("#model option").all_inner_texts())


def test_each_model_says_whether_it_is_in_memory(two: Any, visit: Any) -> None:
    two.models, two.states = ["a", "b", "c", "d"], {"b": "unloaded", "c": "failed", "d": "unavailable"}
    v = visit(two.url)
    assert options(v) == [
        "a (loaded)",
        "b (loads on first use)",
        "c (did not load the last time)",
        "d (not available)",
    ]
    two.states = {}
    v.page.focus("#model")
    expect(v.page.locator("#model option").nth(1)).to_have_text("b (loaded)")
    v.check_quiet()


def test_one_model_in_memory_is_nothing_but_a_name(scripted: Any, visit: Any) -> None:
    v = visit(scripted.url)
    assert v.ask("Hello?") == "Hello there"
    assert options(v) == ["scripted"]


def test_one_model_that_is_not_in_memory_any_more_is_waited_for(scripted: Any, visit: Any) -> None:
    scripted.script, scripted.load = after_the_load(scripted), being_loaded(scripted)
    v = visit(scripted.url)
    v.send("Hello?")
    expect(v.page.locator(".reply .loading")).to_have_text("Loading tiny 43 %")
    expect(v.page.locator("#model option")).to_have_text("scripted (loading 43 %)")
    scripted.go_on.set()
    expect(v.answer).to_have_text("Hello")
    expect(v.page.locator("#model option")).to_have_text("scripted")
    v.check_quiet()


def test_an_answer_that_waits_for_its_model_shows_how_far_that_is(two: Any, visit: Any) -> None:
    """Otherwise a user would see only a spinner, for a minute with a large model."""
    two.script, two.load = after_the_load(two), being_loaded(two)
    v = visit(two.url)
    v.page.select_option("#model", "tiny")
    v.send("Hello?")
    expect(v.page.locator(".reply .loading")).to_have_text("Loading tiny 43 %")
    assert v.page.locator(".reply progress").evaluate("bar => bar.value") == pytest.approx(0.437)
    expect(v.page.locator("#model option").nth(1)).to_have_text("tiny (loading 43 %)")
    expect(v.page.locator("#status")).to_have_text("Loading tiny")
    v.page.wait_for_timeout(300)  # the time to the first token must not include this
    two.go_on.set()
    expect(v.answer).to_have_text("Hello")
    v.wait_idle()
    expect(v.page.locator(".reply .loading")).to_have_count(0)
    expect(v.page.locator("#model option").nth(1)).to_have_text("tiny (loaded)")
    assert (two.loads, two.requests[-1]["model"]) == (["tiny"], "tiny")
    figures = v.page.locator(".figures").inner_text()
    assert int(figures.partition("TTFT ")[2].partition(" ms")[0]) < 300, figures
    wait_until(lambda: two.running == 0)
    v.check_quiet()


def test_an_answer_from_a_model_in_memory_shows_no_load(two: Any, visit: Any) -> None:
    async def script(_: dict[str, Any]) -> AsyncIterator[bytes]:
        await two.wait()
        yield piece("Hello")
        yield piece(finish="stop")
        yield DONE

    two.script = script
    v = visit(two.url)
    v.send("Hello?")
    wait_until(lambda: two.loads == ["smollm2"] and two.running == 1)  # a slow answer, but not because of its model
    expect(v.page.locator(".reply .loading")).to_have_count(0)
    two.go_on.set()
    v.wait_idle()


def test_text_that_comes_first_ends_what_is_shown_of_the_load(two: Any, visit: Any) -> None:
    shown, whole = threading.Event(), threading.Event()

    async def script(_: dict[str, Any]) -> AsyncIterator[bytes]:
        await until(shown)
        yield piece("Half")
        await until(whole)
        yield piece(finish="stop")
        yield DONE

    async def load(_: dict[str, Any]) -> AsyncIterator[bytes]:
        yield event({"state": "loading", "step": "Loading tiny"})
        await two.wait()

    two.script, two.load = script, load
    v = visit(two.url)
    v.page.select_option("#model", "tiny")
    v.send("Hello?")
    expect(v.page.locator(".reply .loading")).to_have_text("Loading tiny")
    shown.set()
    expect(v.answer).to_have_text("Half")
    expect(v.page.locator(".reply .loading")).to_have_count(0)
    wait_until(lambda: two.running == 1)
    whole.set()
    v.wait_idle()


def test_stop_ends_the_wait(two: Any, visit: Any) -> None:
    two.script, two.load = after_the_load(two), being_loaded(two)
    v = visit(two.url)
    v.page.select_option("#model", "tiny")
    v.send("Hello?")
    expect(v.page.locator(".reply .loading")).to_have_text("Loading tiny 43 %")
    v.page.keyboard.press("Escape")
    expect(v.page.locator(".note")).to_have_text("Stopped")
    expect(v.page.locator(".reply .loading")).to_have_count(0)
    expect(v.page.locator("#model option").nth(1)).to_have_text("tiny (loads on first use)")
    wait_until(lambda: two.running == 0)
    v.check_quiet()


def test_a_model_that_cannot_be_loaded_is_reported_once(two: Any, visit: Any) -> None:
    async def load(_: dict[str, Any]) -> AsyncIterator[bytes]:
        yield event({"error": {"message": "the model tiny cannot be loaded", "code": "unavailable"}}, "error")

    two.script, two.load = refusing(503, "the model tiny cannot be loaded: its weights are damaged"), load
    v = visit(two.url)
    v.page.select_option("#model", "tiny")
    two.states = {"tiny": "failed"}
    v.ask("Hello?")
    expect(v.page.locator(".error")).to_have_text("the model tiny cannot be loaded: its weights are damaged")
    expect(v.page.locator("#model option").nth(1)).to_have_text("tiny (did not load the last time)")
    two.script, two.states = saying("Fine."), {}
    v.page.click("text=Try again")
    expect(v.answer).to_have_text("Fine.")
    v.check_quiet(expected=("503",))


def test_a_real_model_is_loaded_by_the_first_message_to_it(
    server: Any, start_server: Any, visit: Any, tmp_path: Path
) -> None:
    """The fixture `server` has put the default model on disk; the second one is the same under another name."""
    second = {"name": "second", "model_path": str(models.show("smollm2").folder)}
    (tmp_path / "models.yml").write_text(json.dumps({"models": ["smollm2", second]}))
    with start_server("--config", str(tmp_path / "models.yml")) as running:
        v = visit(running.http_url)
        assert options(v) == ["smollm2 (loaded)", "second (loads on first use)"]
        v.page.evaluate(NOTE_LOADS)
        v.page.fill("#temperature", "0")
        v.page.select_option("#model", "second")
        assert "Paris" in v.ask("What is the capital of France?")
        expect(v.page.locator("#model option").nth(1)).to_have_text("second (loaded)")
        told = v.page.evaluate("window.__loads")
        assert any(text.startswith("Loading second") for text in told), told
        v.check_quiet()
