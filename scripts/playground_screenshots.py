"""Make the screenshots of docs/playground.md from a running server, by its URL."""

import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
QUESTIONS = ("What is the capital of France?", "Write a Python function that reverses a string.")
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 780},
    "device_scale_factor": 1.5,
    "has_touch": True,
    "is_mobile": True,
}
SHOTS: dict[str, dict[str, Any]] = {
    "light": {**DESKTOP, "color_scheme": "light"},
    "dark": {**DESKTOP, "color_scheme": "dark"},
    "phone": {**PHONE, "color_scheme": "light"},
}


def ask(page: Page, question: str) -> None:
    """Send a question and wait until its answer is complete."""
    answers = page.locator(".figures").count()
    page.fill("#prompt", question)
    page.press("#prompt", "Enter")
    page.locator(".figures").nth(answers).wait_for()


def shoot(browser: Browser, url: str, name: str) -> None:
    """Make one screenshot, after a short conversation."""
    context = browser.new_context(**SHOTS[name], reduced_motion="reduce")
    page = context.new_page()
    page.goto(f"{url}/playground")
    page.locator("#model:enabled").wait_for()
    page.evaluate("document.getElementById('temperature').value = 0")  # the same answers each time
    for question in QUESTIONS:
        ask(page, question)
    page.locator("#prompt").blur()
    page.screenshot(path=IMAGES / f"playground-{name}.png")
    context.close()


def main() -> None:
    """Make all screenshots."""
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:52000"
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        raise SystemExit("no Chromium here: install Debian's `chromium`")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--headless=new", "--no-sandbox"])
        for name in SHOTS:
            shoot(browser, url, name)
        browser.close()


if __name__ == "__main__":
    main()
