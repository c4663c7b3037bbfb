"""Without these tests, a chat in the playground could fail to stream, to stop, to answer again, or to show errors."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi.responses import JSONResponse
from playwright.sync_api import expect
from scripted_server import DONE, event, half_an_answer, piece, refusing, saying, thought, usage
from waiting import wait_until


def test_an_answer_is_shown_while_it_comes(scripted: Any, visit: Any) -> None:
    scripted.script = half_an_answer(scripted)
    v = visit(scripted.url)
    v.send("Hello?")
    expect(v.answer).to_have_text("Half an")
    expect(v.page.locator("#stop-answer")).to_be_visible()
    expect(v.page.locator(".question p")).to_have_text("Hello?")
    expect(v.page.locator(".reply")).to_have_attribute("aria-busy", "true")
    scripted.go_on.set()
    expect(v.answer).to_have_text("Half an answer.")
    v.wait_idle()
    expect(v.page.locator(".figures")).to_contain_text("2 tokens")
    expect(v.page.locator(".figures")).to_contain_text("tokens/s")
    expect(v.page.locator(".figures")).to_contain_text("TTFT")
    expect(v.page.locator("#status")).to_have_text("Answer: Half an answer.")
    v.check_quiet()


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_ends_the_request_on_the_server_and_keeps_what_came(scripted: Any, visit: Any, way: str) -> None:
    """Otherwise a user's abandoned answers would continue to use the server."""
    scripted.script = half_an_answer(scripted)
    v = visit(scripted.url)
    v.send("Hello?")
    expect(v.answer).to_have_text("Half an")
    assert scripted.running == 1
    if way == "button":
        v.page.click("#stop-answer")
    else:
        v.page.keyboard.press("Escape")
    wait_until(lambda: scripted.running == 0)
    expect(v.answer).to_have_text("Half an")
    expect(v.page.locator(".note")).to_have_text("Stopped")
    expect(v.page.locator("#prompt")).to_be_focused()
    scripted.script = saying("Well.")
    assert v.ask("And now?") == "Well."
    assert [m["content"] for m in scripted.requests[-1]["messages"]] == ["Hello?", "Half an ", "And now?"]
    v.check_quiet()


def test_thinking_is_folded_and_apart_from_the_answer(scripted: Any, visit: Any) -> None:
    async def script(_: dict[str, Any]) -> AsyncIterator[bytes]:
        yield thought("Let me <b>see</b>.\n")
        yield thought("Easy.")
        await scripted.wait()
        yield piece("It is **4**.")
        yield piece(finish="stop")
        yield usage(9)
        yield DONE

    scripted.script = lambda request: script(request)
    v = visit(scripted.url)
    v.send("2 + 2?")
    thoughts = v.page.locator(".thoughts")
    expect(thoughts.locator("summary")).to_be_visible()
    expect(thoughts.locator("p")).to_be_hidden()
    thoughts.locator("summary").click()
    expect(thoughts.locator("p")).to_have_text("Let me <b>see</b>.\nEasy.")
    scripted.go_on.set()
    expect(v.answer).to_have_text("It is 4.")
    v.wait_idle()
    expect(thoughts.locator("p")).to_be_visible()
    expect(v.page.locator("#status")).to_have_text("Answer: It is **4**.")
    v.check_quiet()
    v.page.reload()
    expect(thoughts.locator("p")).to_be_hidden()
    expect(v.answer).to_have_text("It is 4.")
    scripted.script = saying("Yes.")
    assert v.ask("Sure?") == "Yes."
    assert [m["content"] for m in scripted.requests[-1]["messages"]] == ["2 + 2?", "It is **4**.", "Sure?"]
    expect(thoughts).to_have_count(2)
    expect(thoughts.last).to_be_hidden()


def test_the_conversation_is_sent_in_turns(scripted: Any, visit: Any) -> None:
    v = visit(scripted.url)
    v.page.fill("#system", "Be brief.")
    v.ask("One")
    v.ask("Two")
    assert scripted.requests[-1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Hello there"},
        {"role": "user", "content": "Two"},
    ]
    assert scripted.requests[-1]["stream"] is True
    assert scripted.requests[-1]["stream_options"] == {"include_usage": True}


def test_regenerate_replaces_the_last_answer(scripted: Any, visit: Any) -> None:
    v = visit(scripted.url)
    v.ask("One")
    v.ask("Two")
    scripted.script = saying("Something", " else")
    v.page.click("text=Regenerate")
    expect(v.answer).to_have_text("Something else")
    v.wait_idle()
    expect(v.page.locator(".reply")).to_have_count(2)
    assert scripted.requests[-1]["messages"] == scripted.requests[-2]["messages"]


def test_a_message_can_be_edited_and_sent_again(scripted: Any, visit: Any) -> None:
    v = visit(scripted.url)
    v.ask("One")
    v.ask("Tow")
    v.page.click("text=Edit")
    expect(v.page.locator("#prompt")).to_have_value("Tow")
    v.ask("Two")
    assert [m["content"] for m in scripted.requests[-1]["messages"]] == ["One", "Hello there", "Two"]


def test_a_new_chat_forgets_and_ends_the_old_one(scripted: Any, visit: Any) -> None:
    scripted.script = half_an_answer(scripted)
    v = visit(scripted.url)
    v.send("Hello?")
    expect(v.answer).to_have_text("Half an")
    v.page.click("#new-chat")
    expect(v.page.locator(".turn")).to_have_count(0)
    wait_until(lambda: scripted.running == 0)
    scripted.script = saying("New.")
    assert v.ask("Who?") == "New."
    assert len(scripted.requests[-1]["messages"]) == 1
    v.page.reload()
    expect(v.page.locator(".question p")).to_have_text("Who?")  # a reload keeps the chat
    v.check_quiet()


def test_an_error_before_the_answer_is_shown_and_can_be_tried_again(scripted: Any, visit: Any) -> None:
    scripted.script = refusing(400, "top_p = 0: input should be greater than 0", param="top_p")
    v = visit(scripted.url)
    v.page.fill("#top_p", "0")
    v.ask("Hello?")
    expect(v.page.get_by_role("alert").filter(has_text="top_p = 0")).to_be_visible()
    expect(v.page.locator("#top_p")).to_have_attribute("aria-invalid", "true")
    expect(v.page.locator("#top_p-hint")).to_contain_text("greater than 0")
    scripted.script = saying("Fine.")
    v.page.fill("#top_p", "")
    v.page.click("text=Try again")
    expect(v.answer).to_have_text("Fine.")
    expect(v.page.locator(".error")).to_have_count(0)
    v.check_quiet(expected=("400",))


def test_a_question_that_failed_is_not_sent_again_with_the_next(scripted: Any, visit: Any) -> None:
    """Many chat templates refuse two questions in a row."""
    scripted.script = refusing(503, "the model is loading")
    v = visit(scripted.url)
    v.ask("One")
    scripted.script = saying("Fine.")
    v.ask("Two")
    assert [m["content"] for m in scripted.requests[-1]["messages"]] == ["Two"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (refusing(401, "the key is missing"), "as the password"),
        (refusing(429, "the queue is full:", **{"Retry-After": "7"}), "Try again in 7 s"),
        (lambda _: JSONResponse("oops", 502), "502"),
    ],
    ids=["key", "queue", "proxy"],
)
def test_an_error_says_what_to_do(scripted: Any, visit: Any, script: Any, words: str) -> None:
    scripted.script = script
    v = visit(scripted.url)
    v.ask("Hello?")
    expect(v.page.locator(".error")).to_contain_text(words)


async def broken(*events: bytes) -> AsyncIterator[bytes]:
    for each in events:
        yield each


ERROR = event({"error": {"message": "the model is gone", "type": "server_error", "param": None, "code": "x"}}, "error")


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ((piece("Half"), ERROR), "the model is gone"),
        ((piece("Half"),), "ended before the answer was complete"),
        ((piece("Half"), DONE), "ended before the answer was complete"),
        ((piece("Half"), b"data: {oops\n\n"), "not JSON"),
    ],
    ids=["error-event", "short", "done-without-reason", "no-json"],
)
def test_an_answer_that_breaks_off_is_never_shown_as_whole(scripted: Any, visit: Any, events: Any, words: str) -> None:
    scripted.script = lambda _: broken(*events)
    v = visit(scripted.url)
    v.ask("Hello?")
    expect(v.answer).to_have_text("Half")
    expect(v.page.locator(".error")).to_contain_text(words)


def test_a_connection_that_is_lost_in_mid_answer_is_reported(scripted: Any, visit: Any) -> None:
    async def script(_: Any) -> AsyncIterator[bytes]:
        yield piece("Half")
        await scripted.wait()
        raise ConnectionError("the script cuts the connection")

    scripted.script = script
    v = visit(scripted.url)
    v.send("Hello?")
    expect(v.answer).to_have_text("Half")
    scripted.go_on.set()
    expect(v.page.locator(".error")).to_have_text("The connection was lost in mid-answer.")
    expect(v.answer).to_have_text("Half")


def test_a_cut_answer_says_so(scripted: Any, visit: Any) -> None:
    scripted.script = saying("And then", finish="length")
    v = visit(scripted.url)
    v.ask("Tell me a story")
    expect(v.page.locator(".note")).to_have_text("Cut at max tokens")


def test_a_stopped_server_is_reported(scripted: Any, visit: Any) -> None:
    v = visit(scripted.url)
    v.page.context.set_offline(True)
    v.ask("Hello?")
    expect(v.page.locator(".error")).to_contain_text("cannot be reached")


def test_models_that_cannot_be_listed_are_requested_again(scripted: Any, visit: Any) -> None:
    names, scripted.models = scripted.models, JSONResponse({"error": {"message": "loading"}}, 503)
    v = visit(scripted.url, ready=False)
    expect(v.page.locator("#notice")).to_contain_text("loading")
    scripted.models = names
    assert v.ask("Hello?") == "Hello there"
    expect(v.page.locator("#notice")).to_have_text("")


def test_the_chosen_model_answers(scripted: Any, visit: Any) -> None:
    scripted.models = ["one", "two"]
    v = visit(scripted.url)
    v.page.select_option("#model", "two")
    v.ask("Hello?")
    assert scripted.requests[-1]["model"] == "two"
    v.page.reload()
    expect(v.page.locator("#model")).to_have_value("two")


def test_the_page_works_behind_a_proxys_prefix(scripted: Any, visit: Any) -> None:
    v = visit(f"{scripted.url}/prefix")
    assert v.ask("Hello?") == "Hello there"
    assert all("/prefix/" in url for url in v.requests)


def test_a_name_and_password_in_the_address_do_not_break_the_page(scripted: Any, visit: Any) -> None:
    """This is how a browser gets the key of a server that requires one."""
    v = visit(scripted.url.replace("//", "//user:secret@"))
    assert v.ask("Hello?") == "Hello there"
