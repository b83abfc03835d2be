"""The page at /, and who may see it."""

import http.client
import re
from base64 import b64encode
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from tests.browser import SIZES, chromium, shown

KEY = "correct-horse-battery"


def get(url, path="/", **headers):
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()


def test_the_page_loads_its_own_files_alone(warm):
    status, headers, page = get(warm.url, Accept="text/html,*/*")
    assert (status, headers.get_content_type()) == (200, "text/html")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        status, headers, text = get(warm.url, f"/{name}")
        assert status == 200
        assert not re.search(r"https?://", text)
    assert not re.search(r"https?://|\bon\w+=|style=", page)


@pytest.mark.parametrize("path", ["/", "/page.js", "/health", "/v1/models", "/openapi.json", "/nothing"])
def test_a_key_guards_every_route(keyed, path):
    basic = b64encode(f"anyone:{KEY}".encode()).decode()
    wrong = ["", f"Bearer {KEY}x", "Bearer", f"Basic {basic[:-4]}", "Basic ?", KEY]
    for authorization in wrong:
        status, headers, body = get(keyed.url, path, Authorization=authorization)
        assert (status, "invalid_api_key" in body) == (401, True)
        assert headers["www-authenticate"].startswith("Basic")
    for authorization in (f"Bearer {KEY}", f"bearer {KEY}", f"Basic {basic}"):
        assert get(keyed.url, path, Authorization=authorization)[0] == (404 if path == "/nothing" else 200)


def test_a_proxy_can_have_another_name(keyed):
    bearer = f"Bearer {KEY}"
    allowed = {"Host": "pictures.example", "Origin": "https://pictures.example"}
    assert get(keyed.url, **allowed, Authorization=bearer)[0] == 200
    assert get(keyed.url, **allowed | {"Origin": "https://evil.example"}, Authorization=bearer)[0] == 403
    assert get(keyed.url, Host="other.example", Authorization=bearer)[0] == 403


@pytest.fixture(scope="module")
def keyed(tmp_path_factory, forked):
    from tests.serving.conftest import serving

    folder = tmp_path_factory.mktemp("keyed")
    (folder / "key").write_text(f"{KEY}\n")
    with serving(folder, forked, "--api-key", folder / "key", "--allow-host", "pictures.example") as ready:
        yield ready


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--socket", "s", "--api-key", "key"], 2, "--api-key has no effect without --port"),
        (["--socket", "s", "--allow-host", "x"], 2, "--allow-host has no effect without --port"),
        (["--port", "0", "--api-key", "missing"], 4, "--api-key missing: No such file"),
        (["--port", "0", "--api-key", "short"], 2, "a key has 16 to 512"),
    ],
)
def test_keys_that_cannot_be(run, tmp_path, arguments, status, words):
    (tmp_path / "short").write_text("secret")
    done = run("serve", *arguments)
    assert (done.status, words in done.stderr) == (status, True)
    assert "secret" not in done.stderr


def test_the_key_can_be_in_the_environment(run):
    done = run("serve", "--port", "0", env={"SDCLI_API_KEY": "secret"})
    assert (done.status, "SDCLI_API_KEY: a key has" in done.stderr, "secret" in done.stderr) == (2, True, False)


def test_pictures_by_the_page_in_a_browser(warm):
    url = warm.url.removesuffix("v1")
    with chromium() as browser:
        for size in SIZES:
            with shown(browser, url, size, "dark" if size == "phone" else "light", accept_downloads=True) as page:
                _use(page)


WATCH = """window.statuses = new Set();
new MutationObserver(() => document.querySelectorAll(".status").forEach((each) => statuses.add(each.textContent)))
    .observe(document.body, {subtree: true, childList: true, characterData: true})"""


def _use(page):
    page.evaluate(WATCH)
    page.locator("#steps:not([placeholder=''])").wait_for()
    page.fill("#prompt", "an arctic fox")
    page.fill("#seed", "7")
    page.fill("#steps", "5")
    page.keyboard.press("Control+Enter")
    page.locator(".card.done").wait_for()
    assert {"waiting", "decoding", "step 2 of 5"} <= {*page.evaluate("[...statuses]")}
    assert page.inner_text(".caption").startswith("an arctic fox · seed 7 · ")

    page.locator(".card.done .frame").press("Enter")
    assert page.inner_text("#command").startswith("sdcli generate 'an arctic fox'")
    assert re.search(r"steps\s+5\b", page.inner_text("#recipe"))
    page.click("#use-image")
    _paint(page)
    page.fill("#steps", "2")
    page.click("#generate")
    page.locator(".card.done").nth(1).wait_for()
    page.locator(".card.done .frame").first.click()
    assert page.inner_text("#command").startswith("sdcli inpaint an-arctic-fox-7.png 'an arctic fox'")
    assert "--mask mask.png" in page.inner_text("#command")
    page.keyboard.press("Escape")
    page.click("#remove")

    page.fill("#steps", "900")
    page.click("#generate")
    page.locator(".status", has_text=re.compile(r"step \d+ of 900")).wait_for()
    page.locator(".cancel").first.click()
    assert page.inner_text(".card.failed .status") == "cancelled"
    page.locator(".card.failed .cancel").click()
    assert page.locator(".card").count() == 2
    page.evaluate("made.length = 0")  # so that leaving asks nothing


def _paint(page):
    """Paint a mask by the pointer, and a part of it by the keyboard."""
    page.locator("#mask").scroll_into_view_if_needed()
    box = page.locator("#mask").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.3, steps=4)
    page.mouse.up()
    for key in (" ", "ArrowDown", "ArrowDown", " "):
        page.keyboard.press(key)
    assert page.evaluate("isPainted()")
