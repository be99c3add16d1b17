"""The demo's report in headless Chromium: tooltips by mouse, touch and keyboard, on wide and narrow screens."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from test_demo_report import STEPS, TRAJECTORY, whole_run, write_run
from viewer_helpers import headless_chromium

from demo.report import write_report

pytestmark = pytest.mark.model  # starts a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless_chromium() as browser:
        yield browser


@pytest.fixture(params=[390, 1280])
def page(request: pytest.FixtureRequest, browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The page of a whole run; at the end nothing may have failed in it, nor been asked of the network."""
    troubles: list[str] = []
    context = browser.new_context(viewport={"width": request.param, "height": 800}, has_touch=True)
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text))
    page.on("request", lambda request: None if request.url.startswith("file:") else troubles.append(request.url))
    page.goto(write_report(whole_run(tmp_path)).as_uri())
    yield page
    context.close()
    assert troubles == []


def test_arrow_keys_go_from_point_to_point_and_escape_hides_the_tooltip(page: Page) -> None:
    tip = page.locator("#tip")
    expect(tip).to_be_hidden()
    page.locator("svg").first.focus()
    for key, text in (("ArrowRight", "step 1 · reward 0.55"), ("ArrowRight", "step 2 · reward 0.65")):
        page.keyboard.press(key)
        expect(tip).to_have_text(text)
    page.keyboard.press("ArrowLeft")
    expect(tip).to_have_text("step 1 · reward 0.55")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()


def test_a_tap_shows_a_value_and_a_tap_elsewhere_hides_it(page: Page) -> None:
    page.locator("svg .held .hit").first.tap()
    expect(page.locator("#tip")).to_have_text("held-out questions before GRPO · 0.52")
    page.locator("h1").tap()
    expect(page.locator("#tip")).to_be_hidden()


def test_everything_is_reached_by_keyboard_alone(page: Page) -> None:
    page.locator("summary", has_text="More curves").focus()
    page.keyboard.press("Enter")
    page.locator("details svg").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tip")).to_have_text("step 1 · valid format 0.93")
    box = page.locator("#tip").bounding_box()
    assert box is not None and box["x"] >= 0 and box["y"] >= 0


def test_nothing_is_wider_than_the_screen(page: Page) -> None:
    for summary in page.locator("summary").all():
        if summary.is_visible():
            summary.click()
    width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width[0] <= width[1]


def test_both_sides_of_the_story_are_side_by_side_on_wide_screens(browser: Browser, tmp_path: Path) -> None:
    records = [TRAJECTORY | {"phase": phase} for phase in ("before", "after")]
    path = write_report(write_run(tmp_path, steps=STEPS, trajectories=records))
    for width, is_beside in ((1280, True), (390, False)):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(path.as_uri())
        left, right = (side.bounding_box() for side in page.locator(".side").all())
        assert left is not None and right is not None
        assert (left["y"] == right["y"]) == is_beside
        page.close()
