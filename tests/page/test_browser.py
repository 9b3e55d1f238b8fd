"""Pages in headless Chromium: they open without an error or a request, draw, and structures turn."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from fairchem_gdeq.page.outcome import write_report
from fairchem_gdeq.page.write import NAME
from tests.diagnose.test_diagnose import write_example
from tests.page.outcomes import EVIL, outcome

pytestmark = pytest.mark.slow

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# WebGL by the processor; and the tests may be those of root in a container.
OPTIONS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium: install the package chromium of the distribution")
    driver = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens a page of this machine; whatever it complains of or asks for is a failure."""
    said = []
    page = browser.new_page(viewport={"width": 1200, "height": 900})

    def to(path):
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(f"request: {request.url}"))
        page.goto(path.as_uri())
        page.wait_for_function(
            "document.querySelectorAll('.plot:not(.js-plotly-plot)').length === 0"
        )
        assert said.pop(0) == f"request: {path.as_uri()}"
        return page

    yield to
    assert said == []
    page.close()


def picture(part):
    return np.asarray(Image.open(io.BytesIO(part.screenshot())).convert("RGB")).astype(int)


def differing(one, other):
    """Share of the pixels that differ."""
    return float((np.abs(one - other).sum(-1) > 30).mean())


def drag(page, part, by):
    part.scroll_into_view_if_needed()
    box = part.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y + by / 2, steps=5)
    page.mouse.up()
    page.mouse.move(box["x"] + 5, box["y"] + 5)  # away from any atom, which would have a label
    page.wait_for_timeout(500)


def test_the_report_of_a_run(visit, tmp_path):
    o = outcome(tmp_path)
    page = visit(write_report(tmp_path, NAME, o))
    assert page.title().startswith("test split, 8 structures")  # no name has run
    assert page.locator("#pairs .point").count() == 8 + len(o.overlays)  # with the rings
    # Every step of both losses, every second one of Delta Q; base and epoch four times; the interval.
    assert page.locator("#run .point").count() == 8 + 8 + 4 + 4 * 2 + 1
    assert page.locator("#bars .point").count() == 3 * 4 + 2

    # No button sends anything away.
    offered = {button.get_attribute("data-title") for button in page.locator(".modebar-btn").all()}
    assert offered == {
        *("Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Autoscale", "Reset axes")
    }

    # The name of a structure where the mouse is, and the structure when it is clicked.
    page.locator("#pairs").scroll_into_view_if_needed()
    traces = page.locator("#pairs .trace").filter(has=page.locator(".point"))
    box = traces.nth(2).locator(".point").first.bounding_box()  # after the rings and the lost ones
    at = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*at)
    page.wait_for_selector("#pairs .hoverlayer .hovertext")
    named = page.locator("#pairs .hoverlayer").text_content()
    assert EVIL in named and "row 0" in named and "tuned 1.000" in named
    page.locator(".viewer .list button").last.click()
    page.locator("#pairs").scroll_into_view_if_needed()
    page.mouse.click(*at)
    pressed = page.locator(".viewer .list button[aria-pressed=true]")
    page.wait_for_timeout(500)
    assert pressed.inner_text().startswith(EVIL)

    # Another scale.
    before = picture(page.locator("#pairs"))
    page.locator("#pairs .updatemenu-button", has_text="log").click()
    page.wait_for_timeout(500)
    assert differing(before, picture(page.locator("#pairs"))) > 0.002


def test_structures_turn_and_change_places(visit, tmp_path):
    o = outcome(tmp_path)
    page = visit(write_report(tmp_path, NAME, o))
    scene, state = page.locator(".viewer .canvas"), page.locator(".viewer .state")
    names = page.locator(".viewer .list button")
    assert names.count() == len(o.overlays)
    assert any(EVIL in text for text in names.all_inner_texts())
    scene.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    first = picture(scene)
    drawn = (first.min(-1) < 250).mean()
    assert 0.005 < drawn < 0.9  # something, on white
    drag(page, scene, 150)
    turned = picture(scene)
    assert differing(first, turned) > 0.005
    drag(page, scene, 0)
    assert differing(turned, picture(scene)) < 0.001  # it is the dragging that turns

    places = page.locator(".viewer .places button")
    assert [text.split(" (")[0] for text in places.all_inner_texts()] == [
        *("unrelaxed X_0", "base", "tuned", "target")
    ]
    places.nth(0).click()
    assert "1 of 8 atoms are more than 0.2 Å" in state.inner_text()
    assert "the farthest 1.00 Å" in state.inner_text()
    drag(page, scene, 0)
    with_arrow = picture(scene)
    orange = (np.abs(with_arrow - [0xD9, 0x5F, 0x02]).sum(-1) < 120).sum()
    assert orange > 20
    places.nth(3).click()
    drag(page, scene, 0)
    at_target = picture(scene)
    assert differing(with_arrow, at_target) > 0.001
    assert (np.abs(at_target - [0xD9, 0x5F, 0x02]).sum(-1) < 120).sum() < 5
    assert "Ge (1)" in page.locator(".viewer .elements").inner_text()

    last = o.overlays[-1]
    names.last.click()
    assert state.inner_text().startswith(f"{last.label.sid} at target")


def test_the_report_of_a_diagnosis(visit, tmp_path):
    page = visit(write_example(tmp_path))
    assert page.locator("#findings .point").count() > 2
    assert page.locator("h1").inner_text() == "title"
