"""The graph view in a real browser: zoom, search, filter, selection, bodies, keys, and 20,000 nodes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx.parser
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import graphopt
from graphopt import pages
from graphopt.graph.diff import diff_models
from graphopt.report.drawn import GraphView
from graphopt.viewing import view

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
#: What the issue asks for; a machine that is busy gets more.
_OPENS_WITHIN = 5.0
_PATIENCE = 4

IF = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 4] x, bool c) => (float[batch, 4] y)
<float[4] w = {1, 2, 3, 4}>
{
    a = Mul(x, w)
    y = If (c) <
        then_branch = t () => (float[batch, 4] p) { p = Relu(a) },
        else_branch = e () => (float[batch, 4] q) { n = Identity(a) q = Neg(n) }
    >
}
"""


class Drawn:
    """One page with two models, and the drawing that it shows."""

    def __init__(self, folder: Path, before: Any, passes: str | None = None) -> None:
        source = graphopt.load(before)
        result = graphopt.run(before, passes, verify="off")
        self.view: GraphView = view(result.model, source)
        self.diff = diff_models(source, result.model)
        self.page = folder / "page.html"
        pages.write(self.page, pages.html(result.report, graph=self.view))


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return Drawn(tmp_path_factory.mktemp("messy"), ROOT / "models" / "messy.onnx")


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return Drawn(tmp_path_factory.mktemp("if"), onnx.parser.parse_model(IF), "remove-identity")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    folder = tmp_path_factory.mktemp("large")
    script = ROOT / "benchmarks" / "synthetic.py"
    subprocess.run([sys.executable, script, "nodes", "20000", folder / "model.onnx"], check=True)
    return Drawn(folder, folder / "model.onnx")


def pane(browser: Any, side: str, what: str) -> Any:
    return browser.js(f"return document.documentElement.graph.panes[arguments[0]].{what}", side)


def selected(browser: Any, side: str) -> str:
    """The name of the node that is selected in a pane, "" for none."""
    script = "const p = document.documentElement.graph.panes[arguments[0]]; return p.selected < 0 ? '' : p.body.name(p.selected)"
    return str(browser.js(script, side))


def search(browser: Any, text: str, *more: str) -> Any:
    field = browser.driver.find_element(By.CSS_SELECTOR, ".search input")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)
    browser.settle()
    field.send_keys(*more) if more else None
    browser.settle()
    return field


def canvas(browser: Any, side: str) -> Any:
    return browser.driver.find_element(By.CSS_SELECTOR, f".pane.{side} canvas.main")


def listed(browser: Any) -> int:
    return int(browser.text(".nodelist .count").replace(",", ""))


def rows(drawn: Drawn) -> int:
    """Rows of the list of the main graph: pairs count once."""
    before, after = drawn.view.before, drawn.view.after
    assert before is not None
    gone = sum(n.state == "removed" for n in before.bodies[0].nodes if n.kind == "node")
    return gone + sum(n.kind == "node" for n in after.bodies[0].nodes)


def test_counts_are_those_of_the_difference(browser: Any, messy: Drawn) -> None:
    browser.open(messy.page)
    said = browser.text("#graph-summary")
    for kind in ("removed", "added", "changed"):
        n = sum(change.kind == kind for change in messy.diff.nodes)
        assert f"{n:,} {kind}" in said
    assert listed(browser) == rows(messy)
    assert browser.complaints() == []


def test_search_finds_by_name_operator_and_tensor_and_enter_jumps(browser: Any, messy: Drawn) -> None:
    browser.open(messy.page)
    main = messy.view.after.bodies[0]
    convs = [n.name for n in main.nodes if n.op == "Conv"]
    field = search(browser, "conv", Keys.ENTER)
    assert selected(browser, "after") in convs
    assert "Conv" in browser.text(".inspector")
    first = selected(browser, "after")
    field.send_keys(Keys.ENTER)
    assert selected(browser, "after") != first
    # By a tensor: exactly what Python finds.
    target = main.nodes[len(main.nodes) // 2]
    tensor = main.tensors[target.outputs[0]].name
    search(browser, tensor, Keys.ENTER)
    assert selected(browser, "after") == target.name
    # It is in the middle of the pane now, at a scale at which names can be read.
    x, y, scale = (pane(browser, "after", what) for what in ("x", "y", "scale"))
    w, h = pane(browser, "after", "w"), pane(browser, "after", "h")
    assert scale >= 0.85
    assert abs((target.x + messy.view.node_width / 2 - x) * scale - w / 2) < 2
    assert abs((target.y + messy.view.node_height / 2 - y) * scale - h / 2) < 2
    search(browser, "no such thing")
    assert browser.text(".said") == "0 found"


def test_selection_is_linked_and_says_who_did_it(browser: Any, messy: Drawn) -> None:
    browser.open(messy.page)
    main = messy.view.after.bodies[0]
    assert messy.view.before is not None
    node = next(n for n in main.nodes if n.state == "changed" and n.made_by == "fold-conv-bn")
    partner = messy.view.before.bodies[0].nodes[node.pair]
    search(browser, main.tensors[node.outputs[0]].name, Keys.ENTER)
    assert selected(browser, "after") == node.name
    assert pane(browser, "before", "selected") == node.pair
    text = browser.text(".inspector")
    assert "made by fold-conv-bn" in text
    assert f"{partner.op} -> {node.op}" in text
    for t in node.inputs:
        assert main.tensors[t].name in text
        assert main.tensors[t].stats in text


def test_wheel_zooms_at_the_pointer_drag_moves_click_selects(browser: Any, messy: Drawn) -> None:
    browser.open(messy.page)
    area = canvas(browser, "after")
    browser.js("arguments[0].scrollIntoView({block: 'center'})", area)
    browser.settle()
    before = pane(browser, "after", "scale")
    point = "const p = document.documentElement.graph.panes.after; return [p.x + p.w / 2 / p.scale, p.y + p.h / 2 / p.scale]"
    middle = browser.js(point)
    origin = ActionChains(browser.driver)
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    for _ in range(3):
        origin.scroll_from_origin(ScrollOrigin.from_element(area), 0, -120)
    origin.perform()
    browser.settle()
    assert pane(browser, "after", "scale") > 1.5 * before
    assert browser.js(point) == pytest.approx(middle, abs=3)
    y = pane(browser, "after", "y")
    ActionChains(browser.driver).move_to_element(area).click_and_hold().move_by_offset(
        0, -60
    ).release().perform()
    browser.settle()
    assert (pane(browser, "after", "y") - y) * pane(browser, "after", "scale") == pytest.approx(60, abs=2)
    # A click on a node: where it is drawn.
    node = next(i for i, n in enumerate(messy.view.after.bodies[0].nodes) if n.op == "Conv")
    offset = browser.js(
        "const p = document.documentElement.graph.panes.after, v = arguments[0];"
        "p.jump(v); return [p.w, p.h]", node,
    )  # fmt: skip
    browser.settle()
    ActionChains(browser.driver).move_to_element_with_offset(area, 0, 0).click().perform()
    assert offset
    assert pane(browser, "after", "selected") == node


def test_filters_dim_and_shorten_the_list(browser: Any, messy: Drawn) -> None:
    browser.open(messy.page)
    for state in ("same", "changed", "added"):
        browser.driver.find_element(By.CSS_SELECTOR, f"[data-state={state}]").click()
    assert messy.view.before is not None
    removed = [n for n in messy.view.before.bodies[0].nodes if n.kind == "node" and n.state == "removed"]
    assert listed(browser) == len(removed)
    op = browser.driver.find_element(By.CSS_SELECTOR, ".filter-op")
    op.send_keys("Constant")
    assert listed(browser) == sum(n.op == "Constant" for n in removed)
    first = browser.text(".nodelist .row")
    assert "removed" in first
    assert "Constant" in first


def test_next_change_walks_through_all_changes(browser: Any, branches: Drawn) -> None:
    browser.open(branches.page)
    browser.js("document.documentElement.graph.openBody(arguments[0])", branches.diff.nodes[0].body)
    kinds = [c for c in branches.diff.nodes if c.body == branches.diff.nodes[0].body]
    seen = []
    for _ in range(len(kinds)):
        browser.driver.find_element(By.CSS_SELECTOR, "[data-act=next]").click()
        seen.append(selected(browser, "after") or selected(browser, "before"))
    assert len(set(seen)) == len(kinds)
    browser.driver.find_element(By.CSS_SELECTOR, "[data-act=next]").click()
    assert browser.text(".said") == "no further change"


def test_bodies_open_and_lead_back(browser: Any, branches: Drawn) -> None:
    browser.open(branches.page)
    search(browser, "if", Keys.ENTER)
    buttons = browser.driver.find_elements(By.CSS_SELECTOR, ".inspector button")
    (inner,) = (b for b in buttons if "else_branch" in b.text)
    inner.click()
    assert "else_branch" in browser.js("return document.querySelector('.bodies').selectedOptions[0].text")
    assert listed(browser) == 2  # Neg, and the Identity that is gone
    search(browser, "neg", Keys.ENTER)
    held = [
        b
        for b in browser.driver.find_elements(By.CSS_SELECTOR, ".inspector button")
        if b.text.startswith("If")
    ]
    held[-1].click()
    assert browser.js("return document.querySelector('.bodies').value") == "main"
    assert pane(browser, "after", "body.op(document.documentElement.graph.panes.after.selected)") == "If"


def test_everything_is_there_for_those_with_a_keyboard_only(browser: Any, messy: Drawn) -> None:
    browser.open(messy.page)
    order = []
    body = browser.driver.find_element(By.TAG_NAME, "body")
    for _ in range(400):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        where = browser.js(
            "const e = document.activeElement; return e.id || e.getAttribute('role') || e.className || e.tagName"
        )
        order.append(where)
        if where == "combobox":
            break
    assert order[0] == "skip"
    assert order[-1] == "combobox"
    assert body
    ActionChains(browser.driver).send_keys("conv").perform()
    browser.settle()
    ActionChains(browser.driver).send_keys(Keys.ENTER).perform()
    name = selected(browser, "after")
    assert name
    for _ in range(30):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        if browser.js("return document.activeElement.matches('.pane.after canvas')"):
            break
    assert browser.js("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    keys = ActionChains(browser.driver)
    x, scale = pane(browser, "after", "x"), pane(browser, "after", "scale")
    keys.send_keys(Keys.ARROW_RIGHT).perform()
    assert pane(browser, "after", "x") > x
    ActionChains(browser.driver).send_keys("+").perform()
    assert pane(browser, "after", "scale") > scale
    # Along the lines: to the reader, and back to the producer.
    ActionChains(browser.driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN).key_up(Keys.SHIFT).perform()
    below = selected(browser, "after")
    assert below != name
    main = messy.view.after.bodies[0]
    upper, lower = (next(n for n in main.nodes if n.name == wanted) for wanted in (name, below))
    assert set(upper.outputs) & set(lower.inputs)
    ActionChains(browser.driver).send_keys("f").perform()
    assert pane(browser, "after", "moved") is False


def test_the_list_is_virtual_and_reachable(browser: Any, messy: Drawn) -> None:
    browser.open(messy.page)
    box = browser.driver.find_element(By.CSS_SELECTOR, ".nodelist .rows")
    browser.js("arguments[0].focus()", box)
    box.send_keys(Keys.ARROW_DOWN)
    assert browser.text(".nodelist .row[aria-selected=true]")
    assert (
        browser.js(
            "return document.querySelector('.nodelist [aria-selected=true]').getAttribute('aria-posinset')"
        )
        == "1"
    )
    box.send_keys(Keys.END)
    assert browser.js(
        "const r = document.querySelector('.nodelist [aria-selected=true]');"
        "return [r.getAttribute('aria-posinset'), r.getAttribute('aria-setsize'), r.id === arguments[0].getAttribute('aria-activedescendant')]",
        box,
    ) == [str(rows(messy)), str(rows(messy)), True]
    assert browser.js("return document.querySelectorAll('.nodelist .row').length") < 40


def test_twenty_thousand_nodes_open_in_time_and_stay_smooth(browser: Any, large: Drawn) -> None:
    assert large.view.before is not None
    assert large.view.before.node_count >= 20_000
    assert large.page.stat().st_size < 3_000_000
    start = time.perf_counter()
    browser.open(large.page)
    waited = time.perf_counter() - start
    ready = browser.js("return performance.getEntriesByName('graph-ready')[0].startTime") / 1000
    assert ready < _OPENS_WITHIN * _PATIENCE, f"{ready:.1f} s"
    assert waited < _OPENS_WITHIN * _PATIENCE
    assert browser.complaints() == []
    assert listed(browser) == rows(large)
    # The picture is there: the pane is not empty.
    colours = browser.js(
        "const c = document.querySelector('.pane.before canvas.main');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return new Set(new Uint32Array(d.buffer)).size"
    )
    assert colours > 20
    search(browser, "MatMul_20", Keys.ENTER)
    assert "MatMul_20" in selected(browser, "after")
    # Zooming through all scales: no frame is a freeze.
    worst = browser.driver.execute_async_script(
        """
        const done = arguments[0], p = document.documentElement.graph.panes.before;
        let last = performance.now(), worst = 0, n = 0;
        p.fit();
        const step = (now) => {
          worst = Math.max(worst, performance.now() - last);
          last = performance.now();
          if (n++ > 60) return done(worst);
          p.zoom(1.1);
          requestAnimationFrame(step);
        };
        requestAnimationFrame(step);
        """
    )
    assert worst < 1000, f"{worst:.0f} ms"


def test_tables_lead_to_the_graph(browser: Any, messy: Drawn) -> None:
    browser.open(messy.page)
    # Of what one pass changed: a name that stands for the value which is computed there.
    browser.js("for (const d of document.querySelectorAll('#passes details')) d.open = true")
    row = browser.driver.find_element(
        By.XPATH, "//table[@id='passes-table']//tr[th[contains(., 'fold-conv-bn')]]"
    )
    button = row.find_element(By.CSS_SELECTOR, "[data-goto]")
    name = button.get_attribute("data-goto")
    browser.js("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    browser.settle()
    main = messy.view.after.bodies[0]
    (node,) = (n for n in main.nodes if n.outputs and main.tensors[n.outputs[0]].name == name)
    assert selected(browser, "after") == node.name
    assert node.made_by == "fold-conv-bn"
    assert browser.js("return document.activeElement.matches('.pane.after canvas.main')")
    top = browser.js("return document.querySelector('#graph').getBoundingClientRect().top")
    assert 0 <= top < 200


def test_the_minimap_shows_where_one_is_and_takes_one_elsewhere(browser: Any, messy: Drawn) -> None:
    browser.open(messy.page)
    map_ = browser.driver.find_element(By.CSS_SELECTOR, ".pane.after .minimap")
    assert not map_.is_displayed()  # all of it is in sight
    search(browser, "conv", Keys.ENTER)
    assert map_.is_displayed()
    browser.js("arguments[0].scrollIntoView({block: 'center'})", map_)
    ActionChains(browser.driver).move_to_element(map_).click().perform()
    browser.settle()
    main = messy.view.after.bodies[0]
    x, y, scale = (pane(browser, "after", what) for what in ("x", "y", "scale"))
    w, h = pane(browser, "after", "w"), pane(browser, "after", "h")
    assert x + w / 2 / scale == pytest.approx(main.width / 2, abs=0.03 * main.height)
    assert y + h / 2 / scale == pytest.approx(main.height / 2, abs=0.03 * main.height)
