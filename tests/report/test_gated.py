"""What becomes of a gate's report: JUnit XML that readers accept, Markdown that shows names as they are, text."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest
from junitparser import Error, Failure, JUnitXml
from markdown_it import MarkdownIt
from rich.console import Console

from graphopt.report.document import FileInfo, ModelStats
from graphopt.report.gate_console import headline, render
from graphopt.report.gated import Check, GateReport, Older
from graphopt.report.junit import junit
from graphopt.report.markdown import code, markdown, text

WHEN = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)
NASTY = 'a|b `c` <d> & "e" *f* _g_ [h](i) \x00\x1b[31m\ud800\ufffe \u202e #1 @all'

CHECKS = (
    Check("file.max_mb", "size on disk", "1.2 MB", "at most 2 MB", "passed", 1.2, 2.0, "", 3, 0.25),
    Check(
        "numerics.min_sqnr_db.y",
        "SQNR of y",
        "12 dB",
        "at least 20 dB",
        "failed",
        12,
        20,
        "450 samples",
        6,
        1.5,
    ),
    Check(
        "numerics.max_abs.y",
        "largest difference of y",
        "not measured",
        "at most 1",
        "error",
        None,
        1,
        "no y",
        7,
    ),
    Check("interface.inputs", "inputs, in order", "x", "x", "passed", line=9),
)


def report(checks: tuple[Check, ...] = CHECKS, **more: object) -> GateReport:
    verdict = "passed" if all(c.verdict == "passed" for c in checks) else "failed"
    return GateReport(
        FileInfo("model.onnx", 1_200_000),
        "ci/gate.toml",
        "digits",
        verdict,  # type: ignore[arg-type]
        checks,
        FileInfo("reference.onnx", 2_000_000),
        versions={"graphopt": "0.1.0", "onnxruntime": "1.32.0"},
        **more,  # type: ignore[arg-type]
    )


# -- JUnit -----------------------------------------------------------------------------------------


def parsed(xml: str, folder: Path) -> JUnitXml:
    (folder / "out.xml").write_text(xml, encoding="utf-8")
    return JUnitXml.fromfile(str(folder / "out.xml"))


def test_a_junit_reader_reads_it(tmp_path: Path) -> None:
    found = parsed(junit(report(), WHEN), tmp_path)
    suites = {suite.name: suite for suite in found}
    assert list(suites) == ["digits.file", "digits.numerics", "digits.interface"]
    numerics = suites["digits.numerics"]
    assert (numerics.tests, numerics.failures, numerics.errors, numerics.skipped) == (2, 1, 1, 0)
    assert numerics.time == 1.5
    assert numerics.timestamp == "2026-01-02T03:04:05"
    sqnr, largest = list(numerics)
    assert (sqnr.name, sqnr.classname, sqnr.time) == ("numerics.min_sqnr_db.y", "digits.numerics", 1.5)
    (failure,) = sqnr.result
    assert isinstance(failure, Failure)
    assert failure.message == "SQNR of y: 12 dB, asked for: at least 20 dB"
    assert failure.text == "450 samples\nci/gate.toml:6"
    (error,) = largest.result
    assert isinstance(error, Error)
    assert error.message == "largest difference of y was not measured"
    assert [case.result for case in suites["digits.file"]] == [[]]
    said = {p.name: p.value for p in numerics.properties()}
    assert said["model"] == "model.onnx"
    assert said["reference"] == "reference.onnx"
    assert said["version of onnxruntime"] == "1.32.0"
    assert "failed: numerics.min_sqnr_db.y: 12 dB" in ElementTree.fromstring(junit(report()))[1].findtext(
        "system-out", ""
    )


#: The form of Apache Ant: element -> (attributes it has to have, those it may have, children in order).
ANT = {
    "testsuites": (set(), set(), r"(testsuite )*"),
    "testsuite": (
        {"package", "id", "name", "timestamp", "hostname", "tests", "failures", "errors", "time"},
        {"skipped"},
        r"properties (testcase )*system-out system-err ",
    ),
    "properties": (set(), set(), r"(property )*"),
    "property": ({"name", "value"}, set(), ""),
    "testcase": ({"name", "classname", "time"}, set(), r"((skipped|error|failure) )?"),
    "failure": ({"type"}, {"message"}, ""),
    "error": ({"type"}, {"message"}, ""),
    "system-out": (set(), set(), ""),
    "system-err": (set(), set(), ""),
}


@pytest.mark.parametrize("checks", [CHECKS, CHECKS[:1], ()])
def test_it_has_the_strictest_of_the_common_forms(checks: tuple[Check, ...]) -> None:
    root = ElementTree.fromstring(junit(report(checks), WHEN))
    for element in root.iter():
        needed, allowed, children = ANT[element.tag]
        assert needed <= set(element.attrib) <= needed | allowed, element.tag
        assert re.fullmatch(children, "".join(f"{child.tag} " for child in element)), element.tag
        for name in ("name", "classname", "package", "hostname"):  # tokens: no surplus blanks, not empty
            if name in element.attrib:
                value = element.attrib[name]
                assert value == " ".join(value.split())
                assert value
    for i, suite in enumerate(root):
        assert suite.attrib["id"] == str(i)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        cases = suite.findall("testcase")
        assert suite.attrib["tests"] == str(len(cases))
        assert suite.attrib["failures"] == str(len(suite.findall("testcase/failure")))
        assert suite.attrib["errors"] == str(len(suite.findall("testcase/error")))
        assert float(suite.attrib["time"]) == pytest.approx(sum(float(c.attrib["time"]) for c in cases))


def test_any_name_makes_legal_xml(tmp_path: Path) -> None:
    bad = Check(f"numerics.{NASTY}", NASTY, NASTY, NASTY, "failed", detail=f"{NASTY}\n]]>{NASTY}", line=1)
    (suite,) = parsed(junit(report((bad,)), WHEN), tmp_path)
    (case,) = suite
    assert r"\x00\x1b[31m\ud800\ufffe" in case.name
    assert '<d> & "e"' in case.result[0].message
    assert "]]>" in case.result[0].text


# -- Markdown --------------------------------------------------------------------------------------


def html(words: str) -> str:
    return MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(words)


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.S)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in rows]


def test_markdown_for_a_pull_request() -> None:
    page = html(markdown(report()))
    assert "<h2>❌ Gate failed: 4 checks of digits: 1 failed, 1 could not be measured</h2>" in page
    rows = cells(page)
    assert rows[0] == ["check", "value", "limit", "verdict"]
    assert rows[1] == ["<code>numerics.min_sqnr_db.y</code>", "12 dB", "at least 20 dB", "❌ failed"]
    assert rows[2][3] == "⚠️ not measured"
    assert [row[3] for row in rows[3:]] == ["✅ passed", "✅ passed"]
    assert (
        "<strong>SQNR of y</strong>: 12 dB, asked for: at least 20 dB. 450 samples (<code>ci/gate.toml:6</code>)"
        in page
    )
    assert page.count("<details>") == page.count("</details>")
    good = markdown(report(CHECKS[:1]))
    assert good.startswith("## ✅ Gate passed: 1 check of digits")
    assert "Why" not in good


def test_markdown_of_what_changed() -> None:
    changes = tuple(f"Conv: {i} -> {i + 1}" for i in range(50))
    older = Older(FileInfo("old.onnx", 1), ModelStats())
    words = markdown(report(changes=changes, against=older))
    assert "What changed (50)" in words
    assert words.count("- Conv: ") == 40
    assert "and 10 more" in words
    assert "Nothing changed since `old.onnx`" in markdown(report(against=older))


@pytest.mark.parametrize(
    "words", [NASTY, "`", "``x`", "a\nb", "|", "\\|", "~~x~~", "<!-- x -->", "http://x.y", "#12"]
)
def test_text_and_code_show_names_as_they_are(words: str) -> None:
    from html import unescape

    from graphopt.report.text import clean

    shown = " ".join(clean(words.replace("\n", " ")).split())
    page = html(f"| a | b |\n|---|---|\n| {text(words)} | {code(words)} |\n")
    plain, span = cells(page)[1]
    assert unescape(plain).replace("@\u200b", "@") == shown  # nobody is notified
    assert unescape(re.fullmatch(r"<code>(.*)</code>", span, re.S)[1]) == shown  # type: ignore[index]


def test_markdown_that_is_too_long_for_a_comment() -> None:
    many = tuple(
        Check(f"numerics.max_abs.output_{i}", "x" * 200, "1", "2", "failed", detail="y" * 900)
        for i in range(500)
    )
    words = markdown(report(many))
    assert 50_000 < len(words) < 65_536
    assert "parts are left out: too long for a comment" in words


# -- text ------------------------------------------------------------------------------------------


def shown(given: GateReport, *, verbose: bool = False) -> str:
    out = io.StringIO()
    render(given, Console(file=out, width=100, markup=False, highlight=False, emoji=False), verbose=verbose)
    return out.getvalue()


def test_text_has_what_failed_first() -> None:
    words = shown(report(warnings=("take care",)))
    lines = words.splitlines()
    assert lines[0] == "FAILED: 4 checks of digits: 1 failed, 1 could not be measured"
    assert lines[1] == "failed numerics.min_sqnr_db.y: SQNR of y: 12 dB, asked for: at least 20 dB"
    assert lines[2:4] == ["  450 samples", "  ci/gate.toml:6"]
    assert lines[4].startswith("error numerics.max_abs.y: largest difference of y: not measured")
    assert re.search(r"file.max_mb +1.2 MB +at most 2 MB +passed", words)
    assert "warning: take care" in words
    assert "onnxruntime 1.32.0" not in words
    assert "onnxruntime 1.32.0" in shown(report(), verbose=True)


def test_text_cannot_drive_a_terminal() -> None:
    bad = Check(NASTY, NASTY, NASTY, NASTY, "failed", detail=NASTY)
    assert "\x1b" not in shown(report((bad,)), verbose=True)


def test_text_of_what_changed() -> None:
    older = Older(FileInfo("old.onnx", 1), ModelStats())
    assert "nothing changed since old.onnx" in shown(report(against=older))
    changes = tuple(f"Conv: {i} -> {i + 1}" for i in range(20))
    words = shown(report(changes=changes, against=older))
    assert "changed since old.onnx:" in words
    assert "and 8 more (-v lists them)" in words


def test_headlines() -> None:
    assert headline(report(CHECKS[:1])) == "1 check of digits"
    assert headline(report((CHECKS[0], CHECKS[3]))) == "all 2 checks of digits"
