"""The report of a gate as JUnit XML, which CI servers show as tests.

The form is the one of Apache Ant, the strictest of the common ones: a suite per table of the policy, a test
case per check, `failure` for a limit that is not kept, `error` for one that could not be measured.
"""

from __future__ import annotations

from datetime import UTC, datetime
from xml.etree import ElementTree

from graphopt.report.gated import Check, GateReport


def junit(report: GateReport, when: datetime | None = None) -> str:
    """The XML document.

    Args:
        report: what to write.
        when: when the checks were carried out; now by default.
    """
    stamp = (when or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S")
    root = ElementTree.Element("testsuites")
    groups: dict[str, list[Check]] = {}
    for check in report.checks:
        groups.setdefault(check.group, []).append(check)
    for number, (group, checks) in enumerate(groups.items()):
        _suite(root, number, group, checks, report, stamp)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False).join(
        ('<?xml version="1.0" encoding="UTF-8"?>\n', "\n")
    )


def _suite(
    root: ElementTree.Element, number: int, group: str, checks: list[Check], report: GateReport, stamp: str
) -> None:
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        {
            "id": str(number),
            "name": f"{_token(report.name)}.{_token(group)}",
            "package": "graphopt.gate",
            "timestamp": stamp,
            "hostname": "localhost",
            "tests": str(len(checks)),
            "failures": str(sum(c.verdict == "failed" for c in checks)),
            "errors": str(sum(c.verdict == "error" for c in checks)),
            "time": _seconds(sum(c.seconds for c in checks)),
        },
    )
    properties = ElementTree.SubElement(suite, "properties")
    said = {"model": report.model.path, "policy": report.policy}
    if report.reference is not None:
        said["reference"] = report.reference.path
    for name, value in {**said, **{f"version of {k}": v for k, v in report.versions.items()}}.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": _legal(value)})
    for check in checks:
        _case(suite, check, report)
    ElementTree.SubElement(suite, "system-out").text = "\n".join(map(_legal, map(_line, checks)))
    ElementTree.SubElement(suite, "system-err").text = ""


def _case(suite: ElementTree.Element, check: Check, report: GateReport) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        {
            "name": _token(check.name),
            "classname": f"{_token(report.name)}.{_token(check.group)}",
            "time": _seconds(check.seconds),
        },
    )
    if check.verdict == "passed":
        return
    kind, message = ("error", f"{check.what} was not measured")
    if check.verdict == "failed":
        kind, message = "failure", f"{check.what}: {check.value}, asked for: {check.limit}"
    place = f"{report.policy}:{check.line}" if check.line else report.policy
    child = ElementTree.SubElement(case, kind, {"type": check.verdict, "message": _legal(message)})
    child.text = _legal("\n".join(text for text in (check.detail, place) if text))


def _line(check: Check) -> str:
    detail = f" ({check.detail})" if check.detail else ""
    return f"{check.verdict}: {check.name}: {check.value}, limit: {check.limit}{detail}"


def _seconds(value: float) -> str:
    return f"{value:.3f}"


def _token(text: str) -> str:
    """One line without surplus blanks, never empty."""
    return " ".join(_legal(text).split()) or "-"


def _legal(text: str) -> str:
    r"""Text with what XML 1.0 cannot say spelt out: "\x00"."""
    return "".join(c if _is_legal(ord(c)) else repr(c)[1:-1] for c in text)


def _is_legal(code: int) -> bool:
    return (
        code in (0x9, 0xA, 0xD)
        or 0x20 <= code < 0xD800
        or 0xE000 <= code < 0xFFFE
        or 0x10000 <= code <= 0x10FFFF
    )
