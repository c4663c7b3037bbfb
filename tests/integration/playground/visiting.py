"""Visit to the playground, which records the page's requests and errors."""

from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Page, expect

SECONDS = 20
PHONE = {"width": 320, "height": 568}
DESKTOP = {"width": 1280, "height": 800}
expect.set_options(timeout=SECONDS * 1000)

# Signs of an attack or of a policy violation that the page itself can see.
WATCH = """
window.__pwned = 0;
window.__violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.__violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


def host(url: str) -> str:
    """Return the host and port of a URL, without a name and password."""
    return urlsplit(url).netloc.rpartition("@")[2]


class Visit:
    """Page that is open on the playground, with the parts that users do not see: requests, the console, dialogs."""

    def __init__(self, context: BrowserContext, url: str, *, ready: bool = True):
        self.url = url
        self.requests: list[str] = []
        self.complaints: list[str] = []
        context.set_default_timeout(SECONDS * 1000)
        context.add_init_script(WATCH)
        context.on("request", lambda request: self.requests.append(request.url))
        self.page: Page = context.new_page()
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._on_dialog)
        self.page.goto(f"{url}/playground")
        if ready:
            expect(self.page.locator("#model")).not_to_have_value("")

    def _on_dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    @property
    def answer(self) -> Any:
        """Text of the last answer."""
        return self.page.locator(".reply .answer").last

    def send(self, text: str) -> None:
        """Write a message and press Enter."""
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")

    def wait_idle(self) -> None:
        """Wait until no answer is coming any more."""
        self.page.wait_for_selector("#send:visible")

    def ask(self, text: str) -> str:
        """Send a message and wait for the whole answer."""
        self.send(text)
        expect(self.page.locator(".question p").last).to_have_text(text)
        self.wait_idle()
        return str(self.answer.inner_text())

    def check_quiet(self, *, expected: tuple[str, ...] = ()) -> None:
        """Assert that no request left this server, no attack ran, and the console has only the expected messages."""
        assert [url for url in self.requests if host(url) != host(self.url) and not url.startswith("data:")] == []
        assert self.page.evaluate("window.__pwned") == 0
        assert self.page.evaluate("window.__violations") == []
        assert [text for text in self.complaints if not any(part in text for part in expected)] == []
