"""Pages in a real browser: they open, load nothing, show the right numbers, and can be used."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_reports as made
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
Show = Callable[[str], Any]

PAGES = made.PAGES


@pytest.mark.parametrize("name", PAGES)
def test_opens_loads_nothing_and_runs_nothing_of_a_models_names(shown: Show, name: str) -> None:
    browser = shown(PAGES[name]())
    assert browser.complaints() == []
    assert browser.requests() == []
    assert browser.js("return performance.getEntriesByType('resource').length") == 0
    assert browser.js("return window.hacked") is None
    assert browser.js("return document.querySelectorAll('img, iframe, link:not([rel=icon])').length") == 0
    assert "</script><script>window.hacked=1</script>\"'&<img src=x" in browser.js(
        "return document.body.innerText"
    )


def test_the_policy_stops_what_is_not_the_pages_own(shown: Show) -> None:
    browser = shown(PAGES["bench"]())
    browser.js(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 3'; document.body.append(s);"
        "const i = new Image(); i.src = 'https://example.org/x.png'; document.body.append(i);"
    )
    browser.settle()
    assert browser.js("return window.hacked") is None
    said = browser.complaints()
    assert len(said) >= 2
    assert all("Content Security Policy" in text for text in said)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The page and the JSON report of one run of the command line."""
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "graphopt", "run", str(ROOT / "models" / "messy.onnx"), "-o", "out.onnx"]
    done = subprocess.run(
        [*command, "--html", "out.html", "--json", "-q"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return folder / "out.html", json.loads(done.stdout)


def test_shows_the_numbers_of_the_json_report(browser: Any, real: tuple[Path, dict[str, Any]]) -> None:
    page, report = real
    browser.open(page)
    assert browser.text("#verdict-word") == report["verdict"].upper()
    before, after = report["before"], report["after"]
    sizes = {row[0]: row[1:] for row in browser.table("#sizes")}
    for label, key in (("nodes", "nodes"), ("initializers", "initializers"), ("parameters", "parameters")):
        assert sizes[label][:2] == [f"{before[key]:,}", f"{after[key]:,}"]
    ops = {row[0]: row[1:3] for row in browser.table("#ops")}
    assert set(ops) == {*before["ops"], *after["ops"]}
    for op, counts in ops.items():
        assert counts == [str(before["ops"].get(op, 0)), str(after["ops"].get(op, 0))]
    browser.js(
        "const s = document.querySelector('#passes select'); s.value = ''; s.dispatchEvent(new Event('change'))"
    )
    rows = browser.table("#passes-table")
    assert [row[1].split()[0] for row in rows] == [p["name"] for p in report["passes"]]
    assert [int(row[3].replace(",", "")) for row in rows] == [p["rewrites"] for p in report["passes"]]
    (output,) = browser.table("#outputs-table")
    (expected,) = report["outputs"]
    assert output[0] == expected["name"]
    assert float(output[3]) == pytest.approx(expected["max_abs"], rel=0.05)
    assert float(output[7]) == pytest.approx(expected["sqnr_db"], abs=0.06)
    assert browser.text("#pipeline") == report["pipeline"]
    assert f"{before['nodes']} nodes before, {after['nodes']} after" in browser.text("#graph-summary")


def test_passes_are_filtered_and_sorted(browser: Any, real: tuple[Path, dict[str, Any]]) -> None:
    page, report = real
    browser.open(page)
    did = [p for p in report["passes"] if p["rewrites"]]
    assert len(browser.table("#passes-table")) == len(did)  # what did something is shown at first
    field = browser.driver.find_element(By.CSS_SELECTOR, "#passes input[type=search]")
    field.send_keys("fold")
    names = [row[1].split()[0] for row in browser.table("#passes-table")]
    assert names == [p["name"] for p in did if "fold" in p["name"]]
    assert browser.text("#passes .shown") == f"{len(names)} of {len(report['passes'])}"
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(Keys.DELETE)
    head = browser.driver.find_element(By.CSS_SELECTOR, "#passes-table th:nth-child(4) button")
    for order in ("ascending", "descending"):
        head.click()
        assert head.find_element(By.XPATH, "..").get_attribute("aria-sort") == order
        rewrites = [int(row[3]) for row in browser.table("#passes-table")]
        assert rewrites == sorted((p["rewrites"] for p in did), reverse=order == "descending")


@pytest.mark.parametrize("name", PAGES)
def test_light_and_dark_are_readable(shown: Show, name: str) -> None:
    """Contrast of all text on what is behind it, by the WCAG formula: at least 4.5 (AA)."""
    browser = shown(PAGES[name]())
    for scheme in ("light", "dark"):
        browser.emulate(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        browser.settle()
        low = browser.js(_CONTRAST)
        assert low == [], scheme
        page = browser.js("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, page[4:-1].split(","))) > 380) == (scheme == "light")


_CONTRAST = """
const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c;
  }
  return [255, 255, 255];
};
const low = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement, style = getComputedStyle(e);
  if (!walker.currentNode.data.trim() || ["SCRIPT", "TITLE", "OPTION", "NOSCRIPT"].includes(e.nodeName)) continue;
  if (!e.checkVisibility() || e.matches(":disabled")) continue;
  const a = light(rgb(e.ownerSVGElement ? style.fill : style.color)), b = light(behind(e));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) low.push(`${e.nodeName}.${e.className.baseVal ?? e.className} ${ratio.toFixed(2)}: ${e.textContent.trim().slice(0, 40)}`);
}
return low;
"""


def test_theme_button_overrides_and_is_kept(shown: Show) -> None:
    browser = shown(PAGES["bench"]())
    button = browser.driver.find_element(By.ID, "theme")

    def background() -> str:
        return str(browser.js("return getComputedStyle(document.body).backgroundColor"))

    light = background()
    button.click()  # light, whatever the system says
    browser.emulate(prefers_color_scheme="dark")
    assert background() == light
    button.click()
    assert button.text == "Theme: dark"
    dark = background()
    assert dark != light
    browser.emulate(prefers_color_scheme="light")
    browser.driver.refresh()
    assert background() == dark
    browser.driver.find_element(By.ID, "theme").click()
    assert background() == light


def test_reads_without_scripts(browser: Any, tmp_path: Path) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    file = tmp_path / "page.html"
    file.write_text(PAGES["gate"](), encoding="utf-8")
    browser.driver.get(file.as_uri())
    text = browser.driver.find_element(By.TAG_NAME, "body").text
    assert "FAILED" in text
    assert "latency.max_ratio" in text
    assert "The graph is drawn by a script" in text


def test_paper_shows_everything_and_no_controls(shown: Show) -> None:
    browser = shown(PAGES["run"]())
    browser.emulate(media="print", prefers_color_scheme="dark")
    hidden = browser.js(
        "return ['.top', '.tools', '.controls', '.nodelist', '.inspector', '.keys', '.minimap']"
        ".filter((s) => [...document.querySelectorAll(s)].some((e) => getComputedStyle(e).display !== 'none'))"
    )
    assert hidden == []
    browser.emulate(prefers_color_scheme="dark")
    closed = browser.js("return document.querySelectorAll('details:not([open])').length")
    assert closed
    browser.js(
        "addEventListener('beforeprint', () => { window.printed = {"
        "closed: document.querySelectorAll('details:not([open])').length,"
        "page: getComputedStyle(document.documentElement).getPropertyValue('--page').trim() } })"
    )
    pdf = browser.driver.execute_cdp_cmd(
        "Page.printToPDF", {"printBackground": True, "paperWidth": 8.27, "paperHeight": 11.69}
    )
    data = base64.b64decode(pdf["data"])
    assert data.startswith(b"%PDF-")
    assert data.count(b"/Type /Page\n") + data.count(b"/Type /Page/") + data.count(b"/Type /Page ") >= 4
    assert browser.js("return window.printed") == {"closed": 0, "page": "#ffffff"}
    # Afterwards it is as it was.
    assert browser.js("return document.querySelectorAll('details:not([open])').length") == closed
    assert browser.js("return document.documentElement.dataset.theme") is None


def test_structure_is_that_of_a_document(shown: Show) -> None:
    """One h1, no heading level left out, captions, names for all controls, ids that are unique."""
    browser = shown(PAGES["run"]())
    levels = browser.js(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].map((h) => Number(h.tagName[1]))"
    )
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert browser.js("return document.documentElement.lang") == "en"
    assert (
        browser.js(
            "return [...document.querySelectorAll('table:not(:has(caption))')].map((t) => t.closest('section').id)"
        )
        == []
    )
    unnamed = (
        "return [...document.querySelectorAll('button, input, select, [role=application], [role=listbox]')].filter((e) =>"
        "!(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert browser.js(unnamed) == []
    twice = (
        "const all = [...document.querySelectorAll('[id]')].map((e) => e.id);"
        "return all.filter((id, i) => all.indexOf(id) !== i)"
    )
    assert browser.js(twice) == []
    assert browser.js(
        "return [...document.querySelectorAll('svg[role=img]')].every((s) => s.getAttribute('aria-label'))"
    )
