"""The report in a headless Chromium: what a person does with it, at both schemes and at a phone's width."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
import study_factory

from mambavision.layout import HybridLayout
from mvsearch.analysis.findings import Findings
from mvsearch.report import write_report
from mvsearch.study.data import StudyData

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def study() -> StudyData:
    return study_factory.trusted(study_factory.study(trials=40))


@pytest.fixture(scope="module")
def address(study: StudyData, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(Findings(study), path)
    return path.as_uri()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sync_api.BrowserContext]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            args=FLAGS,
            viewport={"width": 1280, "height": 900},
            offline=True,
        )
        opened.grant_permissions(["clipboard-read", "clipboard-write"])
        yield opened
        opened.close()


def eventually(page: sync_api.Page, expression: str) -> None:
    """Wait for an expression to hold; Playwright's own waiting evaluates text in the page, whose policy forbids it."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never came to hold: {expression}")


@pytest.fixture
def page(context: sync_api.BrowserContext, address: str) -> Iterator[sync_api.Page]:
    """The report, freshly opened; a test fails if the console complained or anything was asked of the network."""
    opened, complaints = context.new_page(), []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda r: complaints.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else 0)
    opened.goto(address)
    eventually(opened, "document.documentElement.dataset.ready")
    yield opened
    opened.close()
    assert complaints == []


def open_trials(page: sync_api.Page) -> None:
    page.click("nav a[href='#trials']")
    page.wait_for_selector("#find", state="visible")


def numbers(page: sync_api.Page) -> list[int]:
    """Trial numbers of the rows that are shown, from the top."""
    cells = page.eval_on_selector_all(
        "table.sortable tbody tr:not([hidden]) td:first-child", "cells => cells.map((cell) => cell.textContent)"
    )
    return [int(text) for text in cells]


def test_the_first_screen_holds_the_answer(page: sync_api.Page) -> None:
    for selector in (".take .strip", ".take b.big", ".verdicts li.green"):
        box = page.locator(selector).first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 900
    assert "last half" in page.inner_text(".take")


def test_hover_shows_the_layout_of_a_point(page: sync_api.Page, study: StudyData) -> None:
    # The points lie in the order of the traces: dominated, line, front, hand-made.
    point = page.locator("[data-figure=front] .scatterlayer .trace .points path").last
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("[data-figure=front] .hoverlayer .hovertext")
    text = page.text_content("[data-figure=front] .hoverlayer")
    assert "Trial" in text
    assert any(record.baseline in text for record in study.baselines)


def test_a_folded_figure_is_drawn_when_its_section_opens(page: sync_api.Page) -> None:
    assert page.locator("[data-figure=front_nll] .main-svg").count() == 0
    page.click("summary:has-text('NLL on the axis')")
    page.wait_for_selector("[data-figure=front_nll] .main-svg")
    page.locator("[data-figure=front] .modebar-btn").first.wait_for(state="attached")


def test_sorting_by_click_and_by_keyboard(page: sync_api.Page, study: StudyData) -> None:
    open_trials(page)
    head = page.locator("table.sortable th button", has_text="Speed")
    head.click()
    ratios = {record.number: record.ratio for record in study.records if record.ratio}
    shown = [ratios[number] for number in numbers(page) if number in ratios]
    assert shown == sorted(shown)
    assert page.get_attribute("table.sortable th:has-text('Speed')", "aria-sort") == "ascending"
    head.focus()
    page.keyboard.press("Enter")
    shown = [ratios[number] for number in numbers(page) if number in ratios]
    assert shown == sorted(shown, reverse=True)
    assert numbers(page)[-1] not in ratios  # what was not measured stays at the end


def test_searching_and_filtering(page: sync_api.Page, study: StudyData) -> None:
    open_trials(page)
    page.fill("#find", "last half")
    expected = [r.number for r in study.records if r.baseline == "last half"]
    assert numbers(page) == expected
    assert page.inner_text("#found") == f"{len(expected)} of {len(study.records)}"
    page.fill("#find", "|mm")
    assert numbers(page) == [r.number for r in study.records if "|MM" in r.pattern]
    page.fill("#find", "")
    page.click(".find button[data-kind=front]")
    assert numbers(page) == sorted(r.number for r in study.front)
    page.click(".find button[data-kind=failed]")
    assert numbers(page) == [r.number for r in study.failed]
    page.click(".find button[data-kind=all]")
    assert len(numbers(page)) == len(study.records)


def test_a_layout_is_copied(page: sync_api.Page, study: StudyData) -> None:
    open_trials(page)
    page.fill("#find", "last half")
    button = page.locator("table.sortable tbody tr:not([hidden]) button.copy")
    button.click()
    button.get_by_text("Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    wanted = next(r for r in study.records if r.baseline == "last half")
    assert HybridLayout.from_json(copied).key == wanted.key
    assert json.loads(copied)["stages"][0]["blocks"] == "C"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(page: sync_api.Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.wait_for_timeout(300)

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) > 0.5) == (scheme == "light")
    for selector in ("body", ".note", "nav a", "[data-figure=front] .xtick text"):
        style = "fill" if "text" in selector else "color"
        ink = page.eval_on_selector(selector, f"node => getComputedStyle(node).{style}")
        high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector


def test_a_phone_needs_no_sideways_scrolling(page: sync_api.Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate("document.querySelectorAll('details').forEach((section) => { section.open = true; })")
    # Figures take the new width when they are drawn or resized, which a busy machine does late.
    eventually(page, "document.documentElement.scrollWidth <= 390")
    assert page.locator(".plot .main-svg").first.bounding_box()["width"] <= 390


def test_the_keyboard_reaches_what_can_be_done_and_shows_where_it_is(page: sync_api.Page) -> None:
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className || document.activeElement.tagName"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", reached[-1]
    assert "A" in reached
    assert "copy" in reached
