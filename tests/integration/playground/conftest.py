"""Headless Chromium for the tests of the playground, and the servers that it visits."""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

GATEWAY = Path(__file__).parents[1] / "gateway"
sys.path.append(str(GATEWAY))  # for `waiting`, here and in scripted_server

from scripted_server import ScriptedServer, open_scripted_server  # noqa: E402
from visiting import DESKTOP, Visit  # noqa: E402

NO_CHROMIUM = "no Chromium here: install Debian's `chromium`, and the playground is tested in it"
ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def chromium() -> str | None:
    """Return the path of a Chromium on this machine; None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Report at the end that the browser tests did not run."""
    left_out = [report for report in terminalreporter.stats.get("skipped", []) if NO_CHROMIUM in str(report.longrepr)]
    if left_out:
        terminalreporter.section("the playground was NOT tested in a browser", yellow=True)
        terminalreporter.line(f"{len(left_out)} tests did not run: {NO_CHROMIUM}.")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yield one Chromium for a module: Playwright's event loop must be gone before other tests run their own loops."""
    path = chromium()
    if path is None:
        pytest.skip(NO_CHROMIUM)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Yield `visit(url, viewport=PHONE)`, which opens the playground of this server in a fresh profile."""
    contexts: list[BrowserContext] = []

    def open_page(url: str, *, ready: bool = True, **options: Any) -> Visit:
        contexts.append(browser.new_context(**{"viewport": DESKTOP, **options}))
        return Visit(contexts[-1], url, ready=ready)

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def scripted(free_ports: Callable[[int], list[int]]) -> Iterator[ScriptedServer]:
    """Yield a scripted server."""
    with open_scripted_server(free_ports(1)[0]) as opened:
        yield opened


def _gateway_conftest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gateway_conftest", GATEWAY / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look the module up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def a_stack() -> Any:
    """Return the gateway tests' `a_stack`: a real gateway over scripted workers."""
    return _gateway_conftest().a_stack


@pytest.fixture(scope="module")
def stack(
    a_stack: Any, tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]
) -> Iterator[Any]:
    """Yield a real gateway over one scripted worker."""
    with a_stack(tmp_path_factory.mktemp("stack"), free_ports(3), 1, {}, "ready") as running:
        yield running
