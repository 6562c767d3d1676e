"""The report in a browser: on a phone and on a desk, light and dark."""

import re

import numpy as np
import pytest
from browser import Browser, find
from example_results import example
from test_report import EVIL, renamed

from sparseq.run import report

pytestmark = pytest.mark.skipif(find() is None, reason="no Chromium is installed")

SCREENS = [(390, 844, False), (390, 844, True), (320, 640, False), (1280, 900, False),
           (1280, 900, True)]  # fmt: skip

# Elements that stick out to the right of the window and do not scroll in a box of their own.
STICKING_OUT = """[...document.querySelectorAll('body *')].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll')
         && e.getClientRects().length).map(e => e.tagName + ' ' + e.textContent.slice(0, 40))"""

# The least contrast of any text with what is painted behind it (WCAG 2), and the text.
CONTRAST = """(() => {
    const channel = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const parse = text => text.match(/[\\d.]+/g).map(Number);
    const light = c => 0.2126 * channel(c[0] / 255) + 0.7152 * channel(c[1] / 255)
                       + 0.0722 * channel(c[2] / 255);
    let least = [99, ''];
    const texts = 'h1,h2,h3,p,li,dt,dd,th,td,a,figcaption,caption,summary';
    for (const e of document.querySelectorAll(texts)) {
        if (!e.textContent.trim() || e.closest('svg')) continue;
        let behind = e;
        while (behind && /, 0\\)$/.test(getComputedStyle(behind).backgroundColor))
            behind = behind.parentElement;
        const ground = behind ? parse(getComputedStyle(behind).backgroundColor) : [255, 255, 255];
        const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground)];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < least[0]) least = [ratio, e.tagName + ' ' + e.textContent.slice(0, 40)];
    }
    return least;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report as it is, and one whose every name is long or hostile."""
    folder = tmp_path_factory.mktemp("pages")
    report.write(example(), folder / "plain")
    report.write(renamed(example(), "Q+D", EVIL + "long" * 40), folder / "hostile")
    return folder


@pytest.mark.parametrize("kind", ["plain", "hostile"])
@pytest.mark.parametrize(("width", "height", "dark"), SCREENS)
def test_the_page_on_a_screen(browser, pages, tmp_path, kind, width, height, dark):
    path = pages / kind / "report.html"
    browser.open(path, width, height, dark)
    assert browser.ask("innerWidth") == width
    assert browser.ask(STICKING_OUT) == []
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask("document.body.scrollWidth") <= width
    assert browser.requested() == [path.resolve().as_uri()]
    assert not [event for event in browser.events if event.get("method") == "Log.entryAdded"]
    ratio, text = browser.ask(CONTRAST)
    assert ratio >= 4.5, (ratio, text)

    from PIL import Image

    browser.screenshot(tmp_path / "screen.png")
    pixels = np.asarray(Image.open(tmp_path / "screen.png").convert("L"), dtype=float)
    assert pixels.shape == (height, width)
    ground = np.median(pixels)
    assert ground < 60 if dark else ground > 200
    share = float((abs(pixels - ground) > 60).mean())
    assert 0.01 < share < 0.6  # there is text, and room around it


def test_charts_are_drawn_as_wide_as_a_phone_and_legible(browser, pages):
    browser.open(pages / "plain" / "report.html", 390, 844)
    sizes = browser.ask(
        "[...document.querySelectorAll('svg.chart')].map(e => e.getBoundingClientRect().width)"
    )
    assert len(sizes) == 10 and min(sizes) > 340
    # letters of at least 8 CSS pixels
    heights = browser.ask(
        "[...document.querySelectorAll('svg.chart text')].map(e => parseFloat("
        "getComputedStyle(e).fontSize) * e.getScreenCTM().a)"
    )
    angled = [height for height in heights if height > 0]
    assert len(heights) > 100 and min(angled) >= 5.5  # turned letters count with their cosine
    straight = browser.ask(
        "[...document.querySelectorAll('svg.chart text')].filter(e => !e.getScreenCTM().b).map("
        "e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)"
    )
    assert min(straight) >= 8


def test_tables_scroll_inside_their_boxes(browser, pages):
    browser.open(pages / "plain" / "report.html", 390, 844)
    box = "document.querySelector('#variants .scroll')"
    wide, seen = browser.ask(f"[{box}.scrollWidth, {box}.clientWidth]")
    assert wide > seen  # there is something to scroll
    browser.ask(f"{box}.scrollLeft = 10000")
    left = browser.ask(f"{box}.querySelector('tbody th').getBoundingClientRect().left")
    assert 0 <= left < 40  # names stay in sight
    assert browser.ask("document.documentElement.scrollLeft") == 0


def test_no_name_runs_as_a_script(browser, pages):
    browser.open(pages / "hostile" / "report.html", 390, 844)
    assert browser.ask("document.images.length") == 0
    assert browser.ask("document.scripts.length") == 0
    assert re.search("onerror=alert", browser.ask("document.body.innerText"))
