"""Pages as text: self-contained, escaped, and with the right script in their policy."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import made_reports as made
import pytest

from graphopt.report.html import graphdata, pages
from graphopt.report.validated import RuntimeRow, ValidationReport

PAGES = made.PAGES
_VOID = {"meta", "link", "br", "input", "img", "hr", "path", "rect", "line", "circle", "polyline", "polygon"}


class Reader(HTMLParser):
    """Collects elements, text outside of scripts, and whether all elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.script: list[str] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"{tag} at {self.getpos()}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.script.append(data)
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)


@pytest.mark.parametrize("name", PAGES)
def test_well_formed_and_complete_in_itself(name: str) -> None:
    text = PAGES[name]()
    read = Reader(text)
    assert read.wrong == []
    assert read.open == []
    for tag, attributes in read.elements:
        assert not {key for key in attributes if key.startswith("on")}, tag
        for key in ("src", "href", "action", "srcset"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:,")), (tag, value)
    assert "@import" not in text
    assert not re.search(r"url\(", text)


@pytest.mark.parametrize("name", PAGES)
def test_names_are_text_and_nothing_else(name: str) -> None:
    read = Reader(PAGES[name]())
    scripts = [a for tag, a in read.elements if tag == "script"]
    with_graph = name in ("run", "validate", "gate")
    assert len(scripts) == 1 + with_graph  # the page's own, and the data of the graph
    assert not [tag for tag, _ in read.elements if tag in ("img", "iframe", "object", "embed", "form")]
    words = "".join(read.words)
    assert "</script><script>window.hacked=1</script>\"'&<img" in words
    assert "\u202e" not in words  # what turns the direction of writing is spelled out
    assert "\\u202e" in words
    assert "\u0007" not in words
    assert "{{7*7}}" in words  # and not 49


@pytest.mark.parametrize("name", PAGES)
def test_the_policy_names_the_pages_own_script(name: str) -> None:
    text = PAGES[name]()
    policy = next(a["content"] or "" for _, a in Reader(text).elements if "http-equiv" in a)
    own = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(own) == 1
    digest = base64.b64encode(hashlib.sha256(own[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_verdict_and_reason_are_on_top() -> None:
    words = " ".join("".join(Reader(PAGES["gate"]()).words).split())
    assert "FAILED" in words
    assert "1 of 4 checks passed; not: numerics.min_sqnr_db, ops.banned, providers.cuda" in words
    assert "1 failed" not in words.partition("Checks")[0]
    assert "2 failed, 1 could not be measured, 1 passed" in words


def test_rewrites_and_refusals_of_a_pass_are_listed() -> None:
    table = PAGES["run"]().partition('id="passes-table"')[2].partition("</table>")[0]
    words = " ".join("".join(Reader(table).words).split())
    assert "changed 7 places" in words
    assert "/a/Add: a constant is an initializer" in words
    assert "and 6 more" in words  # one site is in the report
    assert "changed 2 places" in words
    assert "/conv1: per channel" in words
    assert "declined for 2 reasons" in words
    assert "3 times, first at /a/Shape: its shape is not known" in words


def test_what_did_not_run_is_not_called_ok() -> None:
    row = RuntimeRow("CUDA", "CUDAExecutionProvider", "on", None, None, False, False, note="not there")
    report = ValidationReport(made.FileInfo("a"), made.FileInfo("b"), "unproven", runtimes=(row,))
    table = pages.validation_page(report).partition('id="runtimes-table"')[2].partition("</table>")[0]
    assert table.count("does not run") == 2
    assert "ok" not in table.partition("<tbody>")[2]
    lossy = replace(row, reference_ok=True, candidate_ok=True, note="")  # held to a budget: no shares
    text = pages.validation_page(replace(report, runtimes=(lossy,)))
    assert text.partition('id="runtimes-table"')[2].partition("</table>")[0].count("✓ ok") == 2


def test_reports_with_nothing_in_them_have_a_page() -> None:
    empty = replace(
        made.run(), passes=(), outputs=(), culprits=(), stages=(), accuracy=None, latency=None, output=None,
        sparsity=None, left_float=(), exploration=None, interface=(), warnings=(), verdict="not verified",
        verdict_reason="",
    )  # fmt: skip
    text = pages.run_page(empty)
    assert Reader(text).wrong == []
    assert "nothing was written" in text
    assert "NOT VERIFIED" in text
    assert 'id="outputs"' not in text
    bench = pages.bench_page(replace(made.bench(), timings=(), ratios=()))
    assert Reader(bench).wrong == []
    gate = replace(made.gate(), validation=None, bench=None, before=None, after=None, reference=None)
    assert Reader(pages.gate_page(gate)).wrong == []


def test_columns_hold_the_drawing() -> None:
    view = made.graph()
    data: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(graphdata.packed(view))))
    after = data["after"]
    body = after["bodies"][0]
    assert [after["ops"][i] for i in body["n"]["op"]] == [
        "",
        f"my.domain::{_clean(made.HOSTILE)}",
        "Relu",
        "",
    ]
    assert body["n"]["state"] == [0, 2, 3, 0]
    assert body["n"]["kind"] == [1, 0, 0, 2]
    assert after["passes"][body["n"]["by"][1]] == "fuse-gelu"
    assert body["n"]["in"] == [[], [0, 1], [2], [3]]
    assert body["t"]["kind"]["1"] == "initializer"
    assert body["t"]["stats"] == {"1": "16 B: 1, 2, 3, 4"}
    assert data["before"]["bodies"][0]["n"]["state"] == [0, 1, 3, 0]


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def test_operators_have_a_category() -> None:
    assert graphdata.category("Conv") == "compute"
    assert graphdata.category("com.microsoft::FusedConv") == "compute"
    assert graphdata.category("my::Thing") == "other"
    assert set(graphdata.LEGEND) == {*graphdata.CATEGORIES, "other"}
    listed = [op for ops in graphdata.CATEGORIES.values() for op in ops]
    assert len(listed) == len(set(listed))
