"""The frame of every page: styles, script and data in one file, and what may run in it."""

from __future__ import annotations

import base64
import hashlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from graphopt.report import text
from graphopt.report.drawn import GraphView

if TYPE_CHECKING:
    import jinja2

_STYLES = ("page.css", "graph.css", "print.css")
_SCRIPTS = ("page.js",)
_GRAPH_SCRIPTS = ("graph_data.js", "graph_minimap.js", "graph_pane.js", "graph_ui.js", "graph_list.js")

Tone = Literal["good", "bad", "warn", ""]
#: How verdicts are meant: colour, and a mark for those who do not see it.
_TONES: dict[str, Tone] = {
    **dict.fromkeys(("proven", "passed", "ok", "faster", "the same"), "good"),
    **dict.fromkeys(("failed", "over budget", "rolled back", "error", "slower"), "bad"),
    **dict.fromkeys(("unproven", "not verified", "warned", "skipped", "not reached"), "warn"),
}
_MARKS: dict[Tone, str] = {"good": "\u2713", "bad": "\u2717", "warn": "!", "": ""}


@dataclass(frozen=True)
class Tile:
    """One figure of the summary: what it is, the figure, and a remark."""

    label: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        id: its anchor.
        title: its heading.
        template: a file in `templates/`.
        data: what the template shows.
    """

    id: str
    title: str
    template: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        kind: which report it is, "validation report".
        title: what it is about: a file, or two.
        verdict: one word; "" for reports without one.
        reason: the verdict in a sentence.
        tiles: the most important figures.
        notices: what people must know, as (tone, text).
        sections: the rest.
        graph: the drawing, if there is one.
        versions: of what made it.
    """

    kind: str
    title: str
    verdict: str = ""
    reason: str = ""
    tiles: Sequence[Tile] = ()
    notices: Sequence[tuple[Tone, str]] = ()
    sections: Sequence[Section] = ()
    graph: GraphView | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def html(self) -> str:
        """The page as one self-contained document."""
        from graphopt.report.html.graphdata import packed

        names = _SCRIPTS + (_GRAPH_SCRIPTS if self.graph is not None else ())
        script = "".join(_asset(name) for name in names)
        return (
            _environment()
            .get_template("page.html")
            .render(
                page=self,
                script=script,
                policy=_policy(script),
                styles="".join(_asset(name) for name in _STYLES),
                light=_asset("light.css"),
                dark=_asset("dark.css"),
                graph_data="" if self.graph is None else packed(self.graph),
            )
        )


def tone(word: str) -> Tone:
    """How a verdict is meant."""
    return _TONES.get(word, "")


def _policy(script: str) -> str:
    """What the page may do: run exactly this script. Nothing is fetched, nothing else runs."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


@cache
def _asset(name: str) -> str:
    return (files("graphopt.report.html") / "assets" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("graphopt.report.html", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {
        name: getattr(text, name) for name in ("size", "count", "change", "figure", "seconds", "plural")
    }
    environment.filters |= {"db": decibels, "ms": milliseconds, "value": _sort_value, "number": _number}
    environment.globals |= {"tone": tone, "mark": lambda word: _MARKS[tone(word)]}
    return environment


def _shown(value: Any) -> Any:
    """What a template prints: no control characters, and nothing that turns the direction of writing."""
    from markupsafe import Markup

    if value is None:
        return ""
    if isinstance(value, Markup) or not isinstance(value, str) or (value.isascii() and value.isprintable()):
        return value
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else _code(c) for c in value
    )


def _code(character: str) -> str:
    return f"\\u{ord(character):04x}"


def decibels(value: float | None) -> str:
    """An SQNR: "34.1", "identical", "-" where there is none."""
    if value is None or math.isnan(value):
        return "-"
    return "identical" if value == math.inf else f"{value:.1f}"


def milliseconds(value: float | None) -> str:
    """A latency with four digits."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:#.4g}" if value < 100 else f"{value:,.1f}"


def _number(value: float | None, digits: int = 5) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def _sort_value(value: float | None) -> str:
    """What a column of numbers is sorted by, as JavaScript reads it."""
    if value is None or math.isnan(value):
        return ""
    return ("Infinity" if value > 0 else "-Infinity") if math.isinf(value) else repr(value)
