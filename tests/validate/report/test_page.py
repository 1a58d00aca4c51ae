"""The report in a browser: it loads without errors, sorts, enlarges, and fits a telephone, by day and by night.

Needs Chromium (Debian: apt install chromium) and playwright; without them these tests are skipped.
"""

import shutil

import pytest

from conftest import Place
from result_files import write_result, write_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on PATH")]

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report of three sets, small and large images among them."""
    run = tmp_path_factory.mktemp("run")
    write_run(run, large=True)
    outcome = Place(run).start("validate.report.__main__", run, "--full-hard", "90")
    assert outcome.code == 0, outcome.err
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

        def console(message):
            if message.type in ("error", "warning"):
                page.complaints.append(message.text)

        def request(asked):
            if not asked.url.startswith(("data:", "file:")):
                page.complaints.append(asked.url)

        page.on("console", console)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", request)
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
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    bright = [sum(map(int, colour[4:-1].split(","))) for colour in (ground, ink)]
    assert (bright[0] > bright[1] + 400) if scheme == "light" else (bright[1] > bright[0] + 400)
    if scheme == "dark":
        assert page.evaluate(
            "document.querySelector('picture img').currentSrc === document.querySelector('picture source').srcset"
        )


def column(page, number):
    return page.locator(f"table.results tbody tr td:nth-child({number})").all_inner_texts()


def test_a_click_sorts_and_another_turns_it_round(opened):
    page = opened()
    heads = page.locator("table.results th").all_inner_texts()
    top1 = next(k for k, text in enumerate(heads, start=1) if text.startswith("top-1"))
    button = page.locator("table.results").get_by_role("button", name="top-1")
    button.click()
    rising = [float(text.split()[0]) for text in column(page, top1)]
    # 9.75 comes before 29.3: by number, not by letter.
    assert rising == sorted(rising) and rising[0] == 9.75 and len(rising) == 6
    button.click()
    assert [float(text.split()[0]) for text in column(page, top1)] == rising[::-1]
    assert page.locator("table.results th[aria-sort]").all_inner_texts() == [heads[top1 - 1]]
    seeds = next(k for k, text in enumerate(heads, start=1) if text.startswith("seeds"))
    page.locator("table.results").get_by_role("button", name="seeds").click()
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
    small, large = (
        page.locator(".strip", has_text=name).first.locator("img").first for name in ("delt, IPC 10", "random, IPC 10")
    )
    look = "image => [image.naturalWidth, getComputedStyle(image).imageRendering]"
    assert small.evaluate(look) == [7 * 32, "pixelated"], "small ones are enlarged by a whole factor"
    assert large.evaluate(look) == [224, "auto"], "large ones are reduced"
    assert "position 0, 20 updates" in page.locator(".strip", has_text="delt, IPC 10").nth(1).locator(
        "img"
    ).first.get_attribute("alt")


def test_scores_are_shown(opened):
    assert "LRS" in opened().locator("main").inner_text()


def test_the_comparison_stands_first_and_its_sets_stay_in_sight(opened):
    page = opened(400)
    table = page.locator("table.pinned").first
    assert table.bounding_box()["y"] < page.locator("table.results").bounding_box()["y"]
    heads = table.locator("th").all_inner_texts()
    assert [head.split(" \u2195")[0] for head in heads[:3]] == ["set", "delt over random", "delt"]
    page.locator("#details").check()
    first = table.locator("tbody tr").first
    assert first.locator("td").all_inner_texts()[:3] == ["delt", "+35.25", "45.00 ± 2.12 (2)"]
    name, top1 = (first.locator("td").nth(k) for k in (0, 1))
    before = name.bounding_box()["x"], top1.bounding_box()["x"]
    table.evaluate("table => table.parentElement.scrollLeft = 150")
    assert name.bounding_box()["x"] == before[0] and top1.bounding_box()["x"] == before[1] - 150
    table.locator("th button").nth(2).click()
    assert [text.split()[0] for text in table.locator("tbody td:nth-child(3)").all_inner_texts()] == ["9.75", "45.00"]


def heads(page, table):
    found = page.locator(f"table.{table} th")
    return [found.nth(k).inner_text().split(" \u2195")[0] for k in range(found.count()) if found.nth(k).is_visible()]


def test_a_telephone_shows_what_matters_and_the_rest_when_asked(opened):
    page = opened(400)
    assert heads(page, "pinned") == ["set", "delt over random", "delt", "hard over random", "hard"]
    assert heads(page, "results") == ["set", "student", "protocol", "top-1"]
    page.locator("#details").check()
    wide = opened(1280)
    assert not wide.locator("#details").is_visible()
    for table in "pinned", "results":
        assert heads(page, table) == heads(wide, table) and len(heads(wide, table)) > 10


def test_only_a_long_table_has_a_filter(opened, browser, tmp_path):
    assert opened().locator("input[type=search]").count() == 0
    for number in range(21):
        write_result(tmp_path, f"set {number}", "hard" if number % 2 else "delt", ipc=2, epochs=30)
    assert Place(tmp_path).start("validate.report.__main__", tmp_path).code == 0
    page = browser.new_page()
    page.goto((tmp_path / "report" / "report.html").as_uri())
    rows = page.locator("table.results tbody tr:visible")
    assert rows.count() > 20 and page.locator("input[type=search]").count() == 2, "the comparison has 21 sets, too"
    field = page.locator("input[type=search]").last
    field.fill("HARD set")
    assert rows.count() == 10 and all("hard" in text for text in rows.all_inner_texts())
    field.fill("SET 13 hard")
    assert rows.count() == 1 and "set 13" in rows.first.inner_text()
    field.fill("")
    assert rows.count() > 20
    page.close()
