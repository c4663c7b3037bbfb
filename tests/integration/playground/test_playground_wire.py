"""Without these tests, the playground could lose bytes of an answer, or send settings that the user did not set."""

import base64
from typing import Any

import pytest
from playwright.sync_api import expect

PARSE = """
async ([bytes, sizes]) => {
  const { readEvents } = await import("/playground/stream.js");
  const all = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
  const seen = [];
  for (const size of sizes) {
    const body = new ReadableStream({
      start(controller) {
        for (let i = 0; i < all.length; i += size) controller.enqueue(all.slice(i, i + size));
        controller.close();
      },
    });
    const events = [];
    for await (const e of readEvents(body)) events.push([e.event, e.data]);
    seen.push(JSON.stringify(events));
  }
  return [...new Set(seen)].map((s) => JSON.parse(s));
}
"""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_events_are_read_wherever_the_network_cuts_them(scripted: Any, visit: Any, end: str) -> None:
    """Otherwise letters would be lost or broken now and then, on slow networks only."""
    lines = [
        ": a comment",
        "data: né",
        "",
        "event: error",
        "data:{",
        "data: 🐈}",
        "",
        "id: 7",
        "",
        "data",
        "",
        "data: cut",
    ]
    stream = base64.b64encode(end.join(lines).encode()).decode()
    v = visit(scripted.url)
    seen = v.page.evaluate(PARSE, [stream, list(range(1, 20))])
    assert seen == [[["message", "né"], ["error", "{\n🐈}"], ["message", ""]]]


def test_a_request_says_nothing_that_is_not_set(scripted: Any, visit: Any) -> None:
    v = visit(scripted.url)
    v.ask("Hello?")
    assert set(scripted.requests[-1]) == {"model", "messages", "stream", "stream_options"}
    values = {"temperature": "0.5", "top_p": "0.9", "max_tokens": "40", "seed": "0", "stop": "END\\n\nStop here\n"}
    for name, value in values.items():
        v.page.fill(f"#{name}", value)
    v.ask("And now?")
    sent = {name: scripted.requests[-1][name] for name in values}
    assert sent == {"temperature": 0.5, "top_p": 0.9, "max_tokens": 40, "seed": 0, "stop": ["END\n", "Stop here"]}
    v.page.click("text=Reset")
    v.ask("And then?")
    assert set(scripted.requests[-1]) == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize(("name", "value"), [("temperature", "3"), ("seed", "1.5"), ("max_tokens", "0")])
def test_an_impossible_setting_is_reported_before_it_is_sent(scripted: Any, visit: Any, name: str, value: str) -> None:
    v = visit(scripted.url)
    hint = v.page.locator(f"#{name}-hint")
    limits = hint.inner_text()
    v.page.fill(f"#{name}", value)
    v.send("Hello?")
    expect(v.page.locator(f"#{name}")).to_be_focused()
    expect(hint).not_to_have_text(limits)  # but the browser's own message
    expect(v.page.locator("#prompt")).to_have_value("Hello?")
    assert scripted.requests == []
    v.page.fill(f"#{name}", "1")
    expect(hint).to_have_text(limits)
