"""The page in a browser: search, build a history, see recommendations change, by mouse and by keyboard."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api")

from python_tests.service.conftest import ITEMS, TITLES  # noqa: E402
from python_tests.untrained import untrained  # noqa: E402
from solid_ext import SOLID  # noqa: E402
from solid_ext.device import DeviceModel  # noqa: E402

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A service in a process of its own, as a user starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "solid_ext.cli", "serve", "--run", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(address + "health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium to test the page in ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, loaded; the test fails where it asked another host or met an error of its own."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(10_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text) if message.type == "error" and "422" not in message.text else None
        ),
    )
    page.on(
        "request", lambda request: None if request.url.startswith((address, "data:")) else problems.append(request.url)
    )
    page.goto(address)
    page.wait_for_selector("#recommended li")
    page.wait_for_selector("#found li")
    yield page
    page.close()
    assert problems == []


def titles(page: Any, name: str) -> list[str]:
    return page.locator(f"#{name} .title").all_text_contents()


def until(page: Any, condition: str) -> None:
    """Wait until an expression holds; asked from here, as the page lets nobody evaluate text in it."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    raise AssertionError(condition)


def settled(page: Any, history: int) -> list[str]:
    """The recommended titles once the history has so many items."""
    until(page, f"document.querySelectorAll('#history li').length === {history}")
    until(page, "!document.getElementById('recommended').hasAttribute('aria-busy')")
    return titles(page, "recommended")


def test_recommendations_change_with_each_click_and_say_why(page: Any) -> None:
    newcomer = settled(page, 0)
    assert len(newcomer) == 10
    page.fill("#query", "the 7th")
    until(page, "document.querySelectorAll('#found li').length === 1")
    page.click("#found button")
    one = settled(page, 1)
    page.click("#recommended button >> nth=0")
    two = settled(page, 2)
    assert len({tuple(newcomer), tuple(one), tuple(two)}) == 3
    assert titles(page, "history") == ["The 7th <b>title</b>", one[0]]  # text, whatever it looks like
    assert page.locator("#history .note").first.inner_text().startswith("semantic ")
    assert all(page.locator("#recommended .note").all_text_contents())
    page.click("#history button >> nth=1")
    assert settled(page, 1) == one
    page.click("#clear")
    assert settled(page, 0) == newcomer


def test_a_model_on_this_device_answers_as_the_service_does(page: Any, solid: SOLID) -> None:
    def scores() -> dict[str, float]:
        return {entry["title"]: entry["score"] for entry in page.evaluate("device.model.recommend(20)")}

    def served(history: list[str]) -> dict[str, Any]:
        found = solid.recommend([[10 * TITLES.index(title) for title in history]], 20)[0]
        return {entry.title: pytest.approx(entry.score, abs=1e-5) for entry in found}

    newcomer = settled(page, 0)
    page.select_option("#example", index=2)
    there = settled(page, 4)
    page.check("#device")
    page.wait_for_selector("#sent:not([hidden])")
    assert settled(page, 4) == there
    assert re.fullmatch(r"[\d,]+ bytes for everybody, [\d,]+ for you", page.inner_text("#sent"))
    assert scores() == served(titles(page, "history"))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.click("#recommended button >> nth=0")
    settled(page, 5)
    assert asked == []  # what happens on the device stays there
    assert page.inner_text("#sent").endswith("layers made 1 event ago")
    stale = scores()
    page.click("#renew")
    until(page, "document.getElementById('renew').hidden")
    here = settled(page, 5)
    assert scores() == served(titles(page, "history")) != stale
    page.uncheck("#device")
    page.wait_for_selector("#sent", state="hidden")
    assert settled(page, 5) == here
    page.check("#device")
    page.click("#clear")
    assert settled(page, 0) == newcomer


LAYERS: list[dict[str, Any]] = [{}, {"low_rank": False}, {"personal_bias": True}, {"target": "mlp", "blocks": 2}]


@pytest.mark.parametrize(
    "fields", [*LAYERS, *({"backbone": name, "blocks": 2} for name in ("gru4rec", "bert4rec", "din"))]
)
def test_every_backbone_and_kind_of_layers_computes_in_a_browser(
    browser: Any, fields: dict[str, Any], tmp_path: Path
) -> None:
    solid = untrained(ITEMS, TITLES, **fields)
    solid.export_device(tmp_path / "device")
    parts = [
        (tmp_path / "device" / "static.safetensors").read_bytes(),
        solid.personalize([30, 70, 20, 90, 100, 110, 540]),
    ]
    named = json.loads((tmp_path / "device" / "items.json").read_text())
    page = browser.new_page()
    page.add_script_tag(path=ROOT / "solid_ext" / "service" / "page" / "device.js")
    found = page.evaluate(
        """([parts, named]) => {
            const [part, blob] = parts.map((text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0)).buffer);
            const model = new DeviceModel(part, named);
            model.load(blob);
            model.observe(50);
            return model.recommend(20);
        }""",
        [[base64.b64encode(part).decode() for part in parts], named],
    )
    page.close()
    expected = DeviceModel(tmp_path / "device").load(parts[1]).observe(50).recommend(20)
    assert [entry["item"] for entry in found] == [entry.item for entry in expected]
    assert [e["score"] for e in found] == pytest.approx([e.score for e in expected], abs=1e-5)


def test_an_example_user_has_a_history(page: Any) -> None:
    page.select_option("#example", index=2)
    assert len(settled(page, 4)) == 10
    assert set(titles(page, "history")) <= set(TITLES)


def test_the_page_works_without_a_mouse(page: Any) -> None:
    def named() -> str:
        return page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.id")

    def reach(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if re.match(name, named()):
                return
        raise AssertionError(f"no {name} to be reached by the tabulator")

    reach("query")
    page.keyboard.type("the 9th")
    until(page, "document.querySelectorAll('#found li').length === 1")
    reach("Add The 9th")
    page.keyboard.press("Enter")
    recommended = settled(page, 1)
    reach(f"Add {re.escape(recommended[0])}")
    page.keyboard.press("Enter")
    settled(page, 2)
    until(page, "document.activeElement.closest('#recommended') !== null")  # the focus was not lost
    page.locator("#history button").first.focus()
    page.keyboard.press("Space")
    settled(page, 1)
    until(page, "document.activeElement.closest('#history') !== null")


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_nothing_is_wider_than_the_screen_and_everything_has_a_name(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.select_option("#example", index=1)
    settled(page, 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = "[...document.querySelectorAll('button, input, select, a')].filter(e => e.offsetParent !== null"
    unnamed += " && !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).length"
    assert page.evaluate(unnamed) == 0


def test_an_answer_that_fails_is_told_in_its_sentence(page: Any) -> None:
    page.evaluate("ask('items?limit=0').catch(fail)")
    page.wait_for_selector("#problem:not([hidden])")
    assert page.inner_text("#problem") == "items: expected limit of at least 1, got '0'"


def test_the_addresses_are_listed_from_the_schema(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(address + "docs")
    page.wait_for_selector("section")
    assert "POST /recommend" in page.locator("h2").all_text_contents()
    assert "history: list of string or integer or number" in page.inner_text("#addresses")
    page.close()
