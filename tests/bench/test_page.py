"""The page in a real browser: no error, no network, charts drawn, tables sort, keyboard works, nothing cut off."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser
from vllm_eagle_plugin.benchmarks.report.page import (
    Bar,
    Bars,
    Cell,
    Grid,
    Line,
    Lines,
    Notes,
    Part,
    Piece,
    Report,
    Tokens,
    render,
    round_ticks,
)

from vllm_eagle_plugin.errors import UsageError

from .browser import DESKTOP, PHONE, open_page, pixels
from .pages import pages


def page_of(*parts: Part) -> str:
    return render(Report("t", "v", "l", parts))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, html in pages().items():
        (folder / f"{name}.html").write_text(html)
    return {file.stem: file for file in folder.iterdir()}


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", list(pages()))
def test_opens_clean_and_fits(browser: Browser, files: dict[str, Path], name: str, scheme: Any, size: dict) -> None:
    page, wrong = open_page(browser, files[name], size, color_scheme=scheme)
    assert not wrong
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], "the page is wider than the screen"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 28)"}[scheme]
    overlapping = page.evaluate(OVERLAPS)
    assert not overlapping
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}-{scheme}-{size['width']}.png", full_page=True)
    page.close()


#: Texts of the same chart that lie on each other.
OVERLAPS = """() => [...document.querySelectorAll('.chart, svg')].flatMap(chart => {
  const texts = [...chart.querySelectorAll('.name, .number, text')].map(e => [e.textContent, e.getBoundingClientRect()]);
  return texts.flatMap(([a, p], i) => texts.slice(i + 1)
    .filter(([b, q]) => p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 3 && q.top < p.bottom - 3)
    .map(([b]) => a + ' | ' + b)) })"""


@pytest.mark.parametrize("name", list(pages()))
def test_charts_are_drawn(browser: Browser, files: dict[str, Path], name: str) -> None:
    page, _ = open_page(browser, files[name], DESKTOP, color_scheme="light")
    drawn = {
        "acceptance": [".bar.length", ".bar.time", ".whisker"],
        "compare": [".bar.speed", ".bar.flag"],
        "sweep": ["svg"],
    }
    for selector in drawn.get(name, [".token.accepted"]):
        picture = pixels(page, selector)
        colours = np.unique((picture.reshape(-1, 3) * 255).astype(int), axis=0)
        assert (colours.min(1) < 120).any(), f"{selector} of {name} shows nothing"
    if name == "sweep":
        blue = (np.abs(pixels(page, "svg") * 255 - (47, 111, 219)).max(-1) < 12).sum()
        assert blue > 300, "the first line is not there"
    page.close()


def test_bar_widths_are_the_figures(browser: Browser, tmp_path: Path) -> None:
    bars = Bars("b", [Bar("one", 0.25, "0.25"), Bar("two", 1.0, "1.00", low=0.5, high=0.75)], top=1.0)
    file = tmp_path / "p.html"
    file.write_text(page_of(bars))
    page, _ = open_page(browser, file, DESKTOP)
    box = {s: page.locator(s).first.bounding_box() for s in (".track", ".bar", ".whisker")}
    assert box[".bar"]["width"] / box[".track"]["width"] == pytest.approx(0.25, abs=0.01)
    assert box[".whisker"]["width"] / box[".track"]["width"] == pytest.approx(0.25, abs=0.01)
    page.close()


def test_tables_sort_by_mouse_and_keyboard(browser: Browser, tmp_path: Path) -> None:
    rows = [[Cell(n, n), Cell(str(v), v)] for n, v in (("b", 9.0), ("a", 10.0), ("c", -1.0))]
    file = tmp_path / "p.html"
    file.write_text(page_of(Grid("g", ["name", "value"], rows)))
    page, _ = open_page(browser, file, DESKTOP)
    names = lambda: page.locator("tbody tr td:first-child").all_inner_texts()  # noqa: E731
    page.get_by_role("button", name="value").click()
    assert names() == ["c", "b", "a"], "numbers should sort as numbers"
    page.get_by_role("button", name="value").press("Enter")
    assert names() == ["a", "b", "c"]
    assert page.locator("th").nth(1).get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="name").focus()
    page.keyboard.press("Space")
    assert names() == ["a", "b", "c"]
    page.close()


def test_figures_on_hover_and_focus(browser: Browser, files: dict[str, Path]) -> None:
    page, _ = open_page(browser, files["acceptance"], DESKTOP)
    tip, row = page.locator("#tip"), page.locator(".row").first
    assert tip.is_hidden()
    row.hover()
    assert tip.inner_text().startswith("position 1: 0.")
    page.mouse.move(0, 0)
    assert tip.is_hidden()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.tip") == row.get_attribute("data-tip")
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.close()


def test_readable_in_print_and_without_script(browser: Browser, files: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(files["acceptance"].as_uri())
    assert "position 1" in page.locator("main").inner_text()
    context.close()
    page, _ = open_page(browser, files["acceptance"], DESKTOP, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf()[:5] == b"%PDF-"
    page.close()


def test_what_comes_from_outside_is_text(browser: Browser, tmp_path: Path) -> None:
    evil = '"><script>document.title="owned"</script><img src=x onerror="document.title=1">'
    parts = [
        Bars(evil, [Bar(evil, 1.0, evil, hint=evil)]),
        Grid(evil, [evil], [[Cell(evil, evil)]]),
        Tokens(evil, [Piece(evil, "accepted", evil, [Piece(evil, "rejected", evil)])], []),
        Notes(evil, [evil]),
    ]
    file = tmp_path / "p.html"
    file.write_text(render(Report("safe", evil, evil, parts)))
    page, wrong = open_page(browser, file, DESKTOP)
    assert page.title() == "safe"
    assert not wrong
    assert page.locator("img").count() == 0
    page.close()


def test_picture_formats() -> None:
    from vllm_eagle_plugin.benchmarks.report.plots import check_format

    with pytest.raises(UsageError, match=r"\.png, \.svg, \.pdf"):
        check_format(Path("x.jpg"))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.692, 1.2, [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]),
        (0.993, 1.0, [0.992, 0.994, 0.996, 0.998, 1.0]),
        (1.0, 1.0, [1.0, 1.2]),
        (0.0, 37.0, [0.0, 10.0, 20.0, 30.0, 40.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert round_ticks(low, high) == pytest.approx(ticks)


def test_ticks_hold_the_figures() -> None:
    chart = Lines("t", [Line("a", [(0.0, 0.69), (4.0, 1.23)])], "x", "y", level=1.0)
    assert chart.y_ticks[0] <= 0.69
    assert chart.y_ticks[-1] >= 1.23
    assert chart.HEIGHT - chart.BOTTOM >= chart.py(0.69) > chart.py(1.23) >= chart.TOP
