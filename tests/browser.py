"""Pages as a person sees them: headless Chromium, driven by Playwright, or the reason why there is none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser; TEST_BROWSER names one that is not on PATH. Skips the test without one."""
    path = os.environ.get("TEST_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH, and TEST_BROWSER is not set")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no driver of browsers: pip install playwright")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def shown(browser: Any, url: str, size: str, scheme: str = "light", **options: Any) -> Iterator[Any]:
    """A page at `url`; what it writes to the console, and every request elsewhere, fails the test at the end."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=size == "phone", **options
    )
    context.set_default_timeout(60_000)
    page, told, asked = context.new_page(), [], []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(url)
        try:
            yield page
        except Exception as error:
            raise AssertionError(f"{error}\nconsole: {told}\npage: {page.inner_text('body')[:2000]}") from error
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        picture = os.environ.get("TEST_SCREENSHOTS")
        if picture:
            page.screenshot(path=f"{picture}/{size}-{scheme}.png")
    finally:
        context.close()
    assert told == []
    assert wide <= 0, "the page is wider than the screen"
    origin = url.split("/")[:3]
    assert [each for each in asked if each.split("/")[:3] != origin and not each.startswith(("data:", "blob:"))] == []
