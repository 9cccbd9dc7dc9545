"""The page of a traced tree in a real browser: chosen by mouse and keyboard, drawn as a tree; and its picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread
from playwright.sync_api import Browser, Page
from vllm_eagle_plugin.benchmarks.report import write_trace
from vllm_eagle_plugin.benchmarks.report.page import Branch
from vllm_eagle_plugin.benchmarks.report.tree_plot import placed, spread
from vllm_eagle_plugin.benchmarks.trace import Trace

from vllm_eagle_plugin.errors import UsageError

from .browser import DESKTOP, PHONE, open_page
from .pages import tree_trace_result

#: Steps of the traced answer, and how many tokens came out of each.
STEPS = [1, 3, 1, 1, 1]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("trace") / "trace.html"
    write_trace(tree_trace_result(), file, None, None)
    return file


def shown(page: Page) -> list[str]:
    """The figures to be seen."""
    return page.eval_on_selector_all("figure", "all => all.filter(f => f.offsetHeight).map(f => f.id)")


def test_one_tree_at_a_time_by_keyboard(browser: Browser, file: Path) -> None:
    page, wrong = open_page(browser, file, DESKTOP)
    assert shown(page) == ["figure-1"], "the first step with something accepted"
    focused = lambda: page.evaluate("document.activeElement.textContent")  # noqa: E731
    page.keyboard.press("Tab")
    assert focused() == " sky", "one stop for the whole text: the chosen token"
    for key, token, figure in [
        ("ArrowRight", " is", 1),
        ("ArrowDown", "⏎\n", 2),
        ("ArrowUp", " sky", 1),
        ("ArrowLeft", "The", 0),
        ("ArrowLeft", "The", 0),
        ("End", "  ", 4),
        ("ArrowDown", "  ", 4),
        ("Home", "The", 0),
    ]:
        page.keyboard.press(key)
        assert (focused(), shown(page)) == (token, [f"figure-{figure}"]), key
    assert page.locator(".token.chosen").count() == STEPS[0]
    assert page.locator("[role=option][aria-selected=true]").count() == 1
    assert not wrong
    page.close()


def test_by_mouse_and_by_address(browser: Browser, file: Path) -> None:
    page, _ = open_page(browser, file, DESKTOP)
    page.locator("[data-opens='4']").click()
    assert shown(page) == ["figure-4"]
    page.goto(f"{file.as_uri()}#figure-2")
    page.reload()
    assert shown(page) == ["figure-2"]
    page.close()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_drawn_as_a_tree(browser: Browser, file: Path, size: dict[str, int]) -> None:
    """Continuations stand to the right of their node, or on a phone further in; nothing lies on anything else."""
    page, _ = open_page(browser, file, size)
    nodes = page.eval_on_selector_all(
        "#figure-1 .node",
        "all => all.map(n => [n.querySelector('.word').textContent.trim(), n.className, n.getBoundingClientRect()])",
    )
    box = {word: at for word, _, at in nodes}
    classes = {word: name for word, name, _ in nodes}
    assert [classes[w] for w in ("The", "sky", "is", "blue", "air")] == [
        "node root", "node accepted", "node accepted", "node corrected", "node rejected",
    ]  # fmt: skip
    assert box["The"]["left"] < box["sky"]["left"] < box["is"]["left"] < box["blue"]["left"]
    assert box["sky"]["left"] == box["air"]["left"]
    assert (box["is"]["top"] == box["sky"]["top"]) == (size == DESKTOP)
    assert max(at["right"] for at in box.values()) <= size["width"]
    places = list(box.values())
    for i, a in enumerate(places):
        for b in places[i + 1 :]:
            apart = (
                a["right"] <= b["left"] or b["right"] <= a["left"] or a["bottom"] <= b["top"] or b["bottom"] <= a["top"]
            )
            assert apart
    page.close()


def test_all_trees_in_print_and_without_script(browser: Browser, file: Path) -> None:
    everything = [f"figure-{i}" for i in range(len(STEPS))]
    page, _ = open_page(browser, file, DESKTOP)
    page.emulate_media(media="print")
    assert shown(page) == everything
    page.close()
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert [page.locator(f"#{name}").is_visible() for name in everything] == [True] * len(STEPS)
    context.close()


def test_words_for_those_who_do_not_see_colours(browser: Browser, file: Path) -> None:
    page, _ = open_page(browser, file, DESKTOP)
    read = page.locator("#figure-1 .node").all_text_contents()
    assert "sky, accepted30%70%" in [text.strip() for text in read]
    page.close()


def test_placed_row_by_row() -> None:
    leaf = lambda name, below=(): Branch(name, "rejected", None, None, list(below))  # noqa: E731
    tree = leaf("0", [leaf("a", [leaf("aa"), leaf("ab")]), leaf("b", [leaf("ba")]), leaf("c")])
    found = {p.branch.text: (p.column, p.row, p.above) for p in placed(tree)}
    assert found == {
        "0": (0, 0, None), "a": (1, 0, 0), "aa": (2, 0, 0), "ab": (2, 1, 0), "b": (1, 2, 0), "ba": (2, 2, 2),
        "c": (1, 3, 0),
    }  # fmt: skip


def test_spread() -> None:
    assert spread([3, 5], 4) == [3, 5]
    assert spread(range(10, 20), 4) == [10, 13, 16, 19]


@pytest.mark.filterwarnings("error")
def test_picture(tmp_path: Path) -> None:
    """Of tokens that matplotlib would take for mathematics or has no sign for, too."""
    result = tree_trace_result()
    for draft in result.steps[1].drafts:
        draft.text = r"$\frac{1}$ 語🙂"
    for suffix in ("png", "svg", "pdf"):
        file = tmp_path / f"trees.{suffix}"
        write_trace(result, None, file, None)
        assert file.stat().st_size > 5000
    drawn = imread(tmp_path / "trees.png")[..., :3]
    green = (abs(drawn * 255 - (217, 242, 230)).max(-1) < 4).sum()
    assert green > 2000, "accepted nodes should be green"


def test_picture_of_chosen_steps(tmp_path: Path) -> None:
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    write_trace(tree_trace_result(), None, few, [2])
    write_trace(tree_trace_result(), None, many, [1, 2])
    assert imread(few).shape[0] < imread(many).shape[0]
    with pytest.raises(UsageError, match="Steps 0 to 4 were expected"):
        write_trace(tree_trace_result(), None, few, [5])


def test_nothing_to_draw(tmp_path: Path) -> None:
    result = tree_trace_result()
    nothing = Trace.model_validate(result.model_dump() | {"steps": [result.steps[0].model_dump()]})
    with pytest.raises(UsageError, match="without drafts"):
        write_trace(nothing, None, tmp_path / "no.png", None)
    write_trace(nothing, tmp_path / "no.html", None, None)
    assert "nothing was drafted" in (tmp_path / "no.html").read_text()
