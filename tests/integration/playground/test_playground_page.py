"""Without these tests, a model's text could attack the page, or the page could fail on a phone or by keyboard."""

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from scripted_server import half_an_answer, refusing, saying
from visiting import DESKTOP, PHONE

AXE = Path(__file__).with_name("axe") / "axe.min.js"

MARKDOWN = """# A heading

Some **bold**, *slanted* and `inline` text, with a [link](https://example.org/a?b=1&c=2) and https://example.org.

1. one
2. two

| name | value |
|:-----|------:|
| pi   |  3.14 |

> quoted

```python
def double(x: int) -> int:
    return 2 * x  # twice
```

```nolang
a < b
```

    indented
"""

ATTACKS = [
    "<script>window.__pwned = 1</script>",
    '<img src=x onerror="window.__pwned = 1">',
    "<svg onload=window.__pwned=1>",
    '<iframe srcdoc="<script>parent.__pwned = 1</script>"></iframe>',
    "[click me](javascript:window.__pwned=1)",
    "[click me](JaVaScRiPt&colon;window.__pwned=1)",
    "[click me](\tjavascript:window.__pwned=1)",
    "<javascript:window.__pwned=1>",
    "[click me](data:text/html,<script>opener.__pwned=1</script>)",
    "[click me][ref]\n\n[ref]: vbscript:window.__pwned=1",
    "![pixel](https://tracker.example/pixel.png)",
    '![x](x"onerror="window.__pwned=1)',
    '```"><img/src=x/onerror=window.__pwned=1>\n</code></pre><script>window.__pwned=1</script>\n```',
    "```html\n<script>window.__pwned = 1</script>\n```",
    "[same server](/adapters/unload)",
    '<a href="javascript:window.__pwned=1">x</a><style>body{display:none}</style><form action=https://evil.example>',
    "<math><mtext><table><mglyph><style><img src=x onerror=window.__pwned=1>",
    "| a |\n|:-:|\n| <img src=x onerror=window.__pwned=1> |",
]
HARMFUL = "script, img, svg, iframe, form, style, object, embed, [onerror], [onload], [style]"


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_a_model_writes_runs(scripted: Any, visit: Any, attack: str) -> None:
    scripted.script = saying(*(attack[i : i + 7] for i in range(0, len(attack), 7)))
    v = visit(scripted.url)
    v.ask("Attack!")
    assert v.answer.locator(HARMFUL).count() == 0
    for link in v.answer.locator("a").all():
        assert link.get_attribute("href").startswith(("http://", "https://"))
        assert link.get_attribute("rel") == "noopener noreferrer nofollow"
        assert link.get_attribute("target") == "_blank"
    for text in v.page.locator(".answer >> text=click me").all():
        text.click()
    v.check_quiet()


def test_what_a_user_writes_is_text(scripted: Any, visit: Any) -> None:
    v = visit(scripted.url)
    v.ask("<img src=x onerror='window.__pwned = 1'> **not bold**")
    expect(v.page.locator(".question p")).to_have_text("<img src=x onerror='window.__pwned = 1'> **not bold**")
    v.check_quiet()


def test_markdown_and_code_are_shown_as_such(scripted: Any, visit: Any) -> None:
    scripted.script = saying(*(MARKDOWN[i : i + 5] for i in range(0, len(MARKDOWN), 5)))
    v = visit(scripted.url)
    v.ask("Show me")
    for selector, text in {
        "h4": "A heading",
        "strong": "bold",
        "em": "slanted",
        "p code": "inline",
        "ol li:nth-child(2)": "two",
        "td.right": "3.14",
        "blockquote": "quoted",
        "a[href='https://example.org/a?b=1&c=2']": "link",
        "a[href='https://example.org']": "https://example.org",
        ".code:has-text('python') .hljs-keyword >> nth=0": "def",
        ".code:has-text('nolang') pre": "a < b",
    }.items():
        expect(v.answer.locator(selector)).to_have_text(text)
    v.check_quiet()


def test_an_answer_in_pieces_looks_like_the_same_answer_at_once(scripted: Any, visit: Any) -> None:
    """While an answer streams, only the changed part is rendered: the result must be the same."""
    text = MARKDOWN + "\n[a]\n\n- loose\n\n- list\n\nSetext\n======\n\n[a]: https://example.org/late\n"
    v = visit(scripted.url)
    whole = []
    for script in (saying(text), saying(*text)):
        scripted.script = script
        v.page.click("#new-chat")
        v.ask("Show me")
        whole.append(v.answer.inner_html())
    assert whole[0] == whole[1]
    expect(v.answer.locator("a[href='https://example.org/late']")).to_have_text("a")


def test_a_long_answer_is_not_made_anew_with_every_word(scripted: Any, visit: Any) -> None:
    """Otherwise long answers would stutter, and the reader's selection would be lost."""
    scripted.script = half_an_answer(scripted, before="First.\n\n```python\nprint(1)\n```\n\n")
    v = visit(scripted.url)
    v.send("Tell me more")
    expect(v.answer.locator("pre")).to_be_visible()
    v.answer.evaluate("answer => { for (const block of answer.children) block.__same = true; }")
    scripted.go_on.set()
    expect(v.answer).to_contain_text("an answer.")
    assert v.answer.evaluate("answer => [...answer.children].map(b => !!b.__same)")[:2] == [True, True]


def test_code_and_answers_can_be_copied(scripted: Any, visit: Any) -> None:
    scripted.script = saying("Look:\n\n```python\nprint(1)\n```\n")
    v = visit(scripted.url, permissions=["clipboard-read", "clipboard-write"])
    v.ask("Show me")
    v.page.click("[aria-label='Copy code']")
    expect(v.page.locator("#status")).to_have_text("Copied")
    assert v.page.evaluate("navigator.clipboard.readText()") == "print(1)\n"
    v.page.click("[aria-label='Copy answer']")
    expect(v.page.locator("[aria-label='Copy answer']")).to_have_text("Copied")
    assert v.page.evaluate("navigator.clipboard.readText()") == "Look:\n\n```python\nprint(1)\n```\n"


def test_copying_works_where_the_browser_hides_its_clipboard(scripted: Any, visit: Any) -> None:
    """Over plain HTTP from another machine, such as a phone, there is no navigator.clipboard."""
    v = visit(scripted.url, permissions=["clipboard-read"])
    v.ask("Hello?")
    v.page.evaluate("Object.defineProperty(navigator.clipboard, 'writeText', {value: undefined})")
    v.page.click("[aria-label='Copy answer']")
    expect(v.page.locator("#status")).to_have_text("Copied")
    assert v.page.evaluate("navigator.clipboard.readText()") == "Hello there"


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.id || document.activeElement.textContent"))


def test_everything_can_be_reached_and_done_by_keyboard(scripted: Any, visit: Any) -> None:
    v = visit(scripted.url)
    expect(v.page.locator("#prompt")).to_be_focused()
    v.page.keyboard.type("One")
    v.page.keyboard.press("Shift+Enter")
    v.page.keyboard.type("Two")
    assert scripted.requests == []
    v.page.keyboard.press("Enter")
    expect(v.page.locator(".question p")).to_have_text("One\nTwo")
    v.wait_idle()
    expect(v.page.locator("#prompt")).to_be_focused()
    v.page.evaluate("document.activeElement.blur(); getSelection().removeAllRanges()")
    v.page.locator("body").evaluate("body => { body.tabIndex = -1; body.focus(); }")
    order = []
    for _ in range(20):
        v.page.keyboard.press("Tab")
        order.append(focused(v.page))
        shown = v.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        box = v.page.evaluate("getComputedStyle(document.activeElement.parentElement).boxShadow")
        assert shown != "none" or box != "none", f"the focus on {order[-1]} cannot be seen"
        if order[-1] == "send":
            break
    assert order == [
        *("Skip to the message box", "model", "new-chat", "toggle-settings", "toggle-theme"),
        *("system", "temperature", "top_p", "max_tokens", "seed", "stop", "Reset"),
        *("scroller", "Edit", "Copy", "Regenerate", "prompt", "send"),
    ]


def test_enter_that_chooses_a_word_of_an_input_method_does_not_send(scripted: Any, visit: Any) -> None:
    v = visit(scripted.url)
    v.page.fill("#prompt", "にほん")
    v.page.locator("#prompt").dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    v.page.keyboard.press("Escape")
    expect(v.page.locator("#prompt")).to_have_value("にほん")
    assert scripted.requests == []


def test_escape_closes_the_settings(scripted: Any, visit: Any) -> None:
    v = visit(scripted.url, viewport=PHONE)
    v.page.click("#toggle-settings")
    v.page.fill("#system", "Be brief.")
    v.page.keyboard.press("Escape")
    expect(v.page.locator("#settings")).to_be_hidden()
    expect(v.page.locator("#toggle-settings")).to_be_focused()


WIDE = (
    "`"
    + "wide " * 60
    + "`\n\n```\n"
    + "x" * 400
    + "\n```\n\n"
    + "y" * 300
    + "\n\n| a | b |\n|-|-|\n| "
    + "z" * 300
    + " | b |\n"
)


@pytest.mark.parametrize("settings", [False, True], ids=["chat", "settings"])
def test_a_phone_scrolls_in_one_direction_only(scripted: Any, visit: Any, settings: bool) -> None:
    scripted.script = saying(WIDE)
    v = visit(scripted.url, viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    v.ask("w" * 200)
    if settings:
        v.page.tap("#toggle-settings")
        expect(v.page.locator("#prompt")).to_be_hidden()
    wider = """[...document.querySelectorAll("html, body, #scroller, #settings, header, .answer")]
        .filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.id || e.tagName)"""
    assert v.page.evaluate(wider) == []
    assert v.page.evaluate("document.documentElement.scrollWidth") == 320
    small = """[...document.querySelectorAll("button, select, input, textarea")].filter((e) => e.checkVisibility())
        .map((e) => [e.id || e.textContent, e.getBoundingClientRect()])
        .filter(([_, box]) => box.height < 44 || box.width < 24 || box.right > innerWidth).map(([name]) => name)"""
    assert v.page.evaluate(small) == []
    v.check_quiet()


def test_the_page_follows_the_answer_until_the_reader_scrolls_up(scripted: Any, visit: Any) -> None:
    scripted.script = saying(*(f"Line {i}\n\n" for i in range(60)))
    v = visit(scripted.url)
    v.ask("Count")

    def below() -> int:
        scroller = v.page.locator("#scroller")
        return int(scroller.evaluate("s => s.scrollHeight - s.scrollTop - s.clientHeight"))

    assert below() < 5
    expect(v.page.locator("#to-end")).to_be_hidden()
    v.page.hover("#scroller")
    v.page.mouse.wheel(0, -600)
    expect(v.page.locator("#to-end")).to_be_visible()
    assert below() > 300
    v.page.click("#to-end")
    expect(v.page.locator("#to-end")).to_be_hidden()
    assert below() < 5


def test_the_theme_is_the_systems_until_it_is_chosen(scripted: Any, visit: Any) -> None:
    page = visit(scripted.url, color_scheme="dark").page
    background = "getComputedStyle(document.body).backgroundColor"
    button = page.locator("#toggle-theme")
    dark = page.evaluate(background)
    expect(button).to_have_attribute("aria-pressed", "true")
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    assert light != dark
    button.click()
    assert page.evaluate(background) == dark
    page.reload()
    assert page.evaluate(background) == dark
    expect(button).to_have_attribute("aria-pressed", "true")


def test_nothing_moves_where_motion_is_not_wanted(scripted: Any, visit: Any) -> None:
    scripted.script = half_an_answer(scripted)
    v = visit(scripted.url, reduced_motion="reduce")
    v.send("Hello?")
    expect(v.answer).to_have_text("Half an")
    assert v.answer.evaluate("e => getComputedStyle(e.lastElementChild, '::after').animationName") == "none"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_axe_finds_no_barrier(scripted: Any, visit: Any, scheme: str, viewport: Any) -> None:
    """axe checks names, roles, contrast and the other checkable rules of WCAG 2.2 A and AA."""
    v = visit(scripted.url, viewport=viewport, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True)
    scripted.script = saying(MARKDOWN, finish="length")
    v.ask("Show me")
    scripted.script = refusing(400, "max_tokens = 9: this is too much", param="max_tokens")
    v.ask("And more")
    states = ["chat"]
    if viewport == PHONE:
        states.append("settings")
    for state in states:
        if state == "settings":
            v.page.click("#toggle-settings")
        v.page.evaluate(AXE.read_text())
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        found = v.page.evaluate("tags => axe.run(document, {runOnly: tags})", tags)
        told = [f"{rule['id']}: {[node['html'][:120] for node in rule['nodes']]}" for rule in found["violations"]]
        assert told == []
        assert len(found["passes"]) > 20
