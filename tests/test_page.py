"""The report in a browser: it loads without errors, sorts, enlarges, and fits a telephone, by day and by night.

Needs Chromium (Debian: apt install chromium) and playwright; without them these tests are skipped.
"""
import json
import shutil

import pytest

from helpers import noise
from test_report import stored
from validate import report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on PATH")

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report of three sets, small and large images among them."""
    run = tmp_path_factory.mktemp("run")
    for name in ("syn", "random", "init"):
        for label in ("ant", "moth"):
            for rank in range(12):
                noise(run / name / label / f"{rank:03d}_x.png", rank, 32 if name != "random" else 300)
    images = {f"{label}/{rank:03d}_x.png": {"round": rank // 6, "sha256": ""} for label in ("ant", "moth") for rank in range(12)}
    (run / "syn" / "manifest.json").write_text(json.dumps({
        "settings": {"iterations": 20, "round_iterations": 10}, "arguments": {"init_dir": str(run / "init")}, "units": 1,
        "seconds": 60, "images": images}))
    stored(run, "delt", "delt", ((0, 43.5), (1, 46.5)), syn_dir=str(run / "syn"))
    stored(run, "random", "delt", ((0, 9.75),), syn_dir=str(run / "random"))
    stored(run, "delt", "hard", ((0, 31.0),), syn_dir=str(run / "syn"))
    (run / "diversity.csv").write_text("method,class,images,similarity,extractor,syn_dir\n" + "".join(
        f"{method},{label},12,0.{40 + 7 * k},conv3,s\n" for k, (method, label) in enumerate(
            (method, label) for method in ("delt", "random") for label in ("ant", "moth"))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report", str(run), "--full-hard", "90"])
        report.main()
    return run / "report" / "report.html"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser, page_file):
    def open_page(width=1280, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(("data:", "file:")) else page.complaints.append(request.url))
        page.goto(page_file.as_uri())
        pages.append(page)
        return page

    pages = []
    yield open_page
    for page in pages:
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_loads_and_fits(opened, width, scheme):
    page = opened(width, scheme)
    assert page.complaints == []
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    # Ten of twelve images, of two classes and four strips, and four figures.
    assert page.evaluate("document.images.length") == 10 * 2 * 3 + 4
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out at the side"
    ground, ink = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    bright = [sum(map(int, colour[4:-1].split(","))) for colour in (ground, ink)]
    assert (bright[0] > bright[1] + 400) if scheme == "light" else (bright[1] > bright[0] + 400)
    if scheme == "dark":
        assert page.evaluate("document.querySelector('picture img').currentSrc === document.querySelector('picture source').srcset")


def column(page, number):
    return page.locator(f"table.sortable tbody tr td:nth-child({number})").all_inner_texts()


def test_a_click_sorts_and_another_turns_it_round(opened):
    page = opened()
    heads = page.locator("table.sortable th").all_inner_texts()
    top1 = next(k for k, text in enumerate(heads, start=1) if text.startswith("top-1"))
    button = page.get_by_role("button", name="top-1")
    button.click()
    rising = [float(text.split()[0]) for text in column(page, top1)]
    # 9.75 comes before 29.3: by number, not by letter.
    assert rising == sorted(rising) and rising[0] == 9.75 and len(rising) == 6
    button.click()
    assert [float(text.split()[0]) for text in column(page, top1)] == rising[::-1]
    assert page.locator("th[aria-sort]").all_inner_texts() == [heads[top1 - 1]]
    seeds = next(k for k, text in enumerate(heads, start=1) if text.startswith("seeds"))
    page.get_by_role("button", name="seeds").click()
    assert column(page, seeds) == ["1", "1", "2", "", "", ""], "published rows have no seeds, and come last"


def test_published_rows_look_different(opened):
    page = opened()
    rows = page.locator("tr.published")
    assert rows.count() == 3 and all("published" in text for text in rows.all_inner_texts())
    assert rows.first.evaluate("row => getComputedStyle(row).fontStyle") == "italic"


def test_an_image_is_enlarged_and_put_back(opened):
    page = opened(400)
    first, second = (page.locator(".images label").nth(k) for k in (0, 25))
    small = first.locator("img").bounding_box()["width"]
    first.click()
    assert first.locator("img").bounding_box()["width"] > 4 * small
    page.keyboard.press("Escape")
    assert first.locator("img").bounding_box()["width"] == small
    second.locator("input").focus()
    page.keyboard.press("Space")
    assert second.locator("img").bounding_box()["width"] > 4 * small, "by the keyboard, too"


def test_images_are_shown_as_they_are_stored(opened, page_file):
    page = opened()
    small, large = (page.locator(".strip", has_text=name).first.locator("img").first for name in ("delt, IPC 10", "random, IPC 10"))
    assert small.evaluate("image => [image.naturalWidth, getComputedStyle(image).imageRendering]") == [32, "pixelated"]
    assert large.evaluate("image => image.naturalWidth") == 256, "large ones are reduced"
    assert "rank 0, 20 updates" in page.locator(".strip", has_text="delt, IPC 10").nth(1).locator("img").first.get_attribute("alt")


def test_scores_are_shown(opened):
    assert "LRS" in opened().locator("main").inner_text()
