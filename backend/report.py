"""What became of the suggestions in one project, as a page for the people who run it. One file, no scripts.

Three parts: how many suggestions annotators took as they were, what the others were changed to, and which confirmed
labels are likely wrong.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from backend.html_report import thumbnail
from backend.memory import Confirmation
from backend.report_figures import (
    BIN_AT_LEAST,
    LABEL_AT_LEAST,
    SUSPECT_ODDS,
    Bin,
    Figures,
    Suspect,
    Tally,
    figures,
    find_suspects,
)
from plugin.labeling_config import LabelingConfig

__all__ = ["SUSPECTS_SHOWN", "Suspect", "figures", "find_suspects", "write_report"]

SUSPECTS_SHOWN = 60

TEXT_SHOWN = 120
"""Characters of a label: a TextArea may hold a novel."""

Link = Callable[[int], str]
"""Task -> its address in Label Studio."""

_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;padding:1.5rem;max-width:1000px;background:#f6f7f9;
color:#1b1f24}
h1{margin:0;font-size:1.7rem;line-height:1.25;overflow-wrap:anywhere}h2{margin:0 0 .3rem;font-size:1.25rem}
h3{margin:1.6rem 0 .3rem;font-size:1rem}p{margin:.3rem 0;max-width:75ch}.note{color:#556;font-size:13px}
section{background:#fff;border-radius:8px;box-shadow:0 1px 3px #0002;padding:1.2rem 1.4rem;margin:1rem 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:1rem;margin:1rem 0}
.tiles a{background:#fff;border-radius:8px;box-shadow:0 1px 3px #0002;padding:.8rem 1.4rem;color:inherit;
text-decoration:none}
.tiles b{display:block;font-size:2rem;line-height:1.3;font-weight:600;color:#1d4f9e}
a{color:#1d4f9e}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.3rem .9rem .3rem 0;border-bottom:1px solid #e4e7eb;vertical-align:top}
th{font-weight:600;font-size:13px;color:#556;vertical-align:bottom}td:last-child,th:last-child{padding-right:0}
td.text{overflow-wrap:anywhere;min-width:8rem}td.number,th.number{text-align:right;width:1%}
td.share{width:30%;min-width:8rem}thead{display:table-header-group}tr,figure,.chart{break-inside:avoid}
.bar{position:relative;padding:.05rem .4rem;border-radius:4px;overflow:hidden;background:#eef1f4}
.bar+.bar{margin-top:.25rem}.bar i{position:absolute;inset:0 auto 0 0;background:#bcd6ff}
.bar.own i{background:#ffcf9f}.bar,.bar i{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.bar span{position:relative;display:flex;justify-content:space-between;gap:.6rem;overflow-wrap:anywhere}
.bar b{font-weight:500;white-space:nowrap}
.chart{padding:1.6rem .5rem 0 2.8rem}
.chart svg{display:block;width:100%;height:210px;overflow:visible;font-size:12px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:1rem;margin-top:1rem}
figure{margin:0;border:1px solid #dde1e6;border-radius:8px;overflow:hidden}
figure img,.none{display:block;width:100%;height:190px;object-fit:contain;background:#e9ecf0}
.none{display:grid;place-items:center;color:#667;font-size:13px}
figcaption{padding:.6rem .8rem}figcaption div.note{margin-bottom:.3rem;overflow-wrap:anywhere}
@media(max-width:600px){body{padding:.8rem}section,.tiles a{padding:.9rem 1rem}table{font-size:13px}
th,td{padding-right:.4rem}th{font-size:11px}td.text{min-width:4.5rem}td.share{min-width:3.5rem}}
@media print{body{background:#fff;padding:0;max-width:none;font-size:12px}a{color:inherit}
section{box-shadow:none;border:0;padding:.5rem 0}.tiles a{box-shadow:none;border:1px solid #ccd}
h2,h3{break-after:avoid}#errors{break-before:page}
.grid{grid-template-columns:repeat(3,1fr)}figure img,.none{height:120px}}
</style>
"""

_NOTHING = """<section><h2>Nothing is confirmed yet</h2>
<p>This page shows how annotators took the suggestions, once they have labelled some tasks.</p>
<ol><li>Let Label Studio show suggestions and report annotations: <code>forelabel connect</code> sets up both.</li>
<li>Label a few tasks. Each annotation that is submitted counts.</li>
<li>Was this project labelled before it was connected? <code>forelabel sync</code> fetches those annotations.</li></ol>
</section>
"""

_MEANING = """<p class="note">Each question of an annotation counts once, if something was suggested for it. Taken means
that exactly this was submitted; of several labels, all of them and no others.</p>
"""

_NO_SUGGESTIONS = """<p>It is not known of any annotation what had been suggested. That is so where tasks were labelled
before Forelabel had suggested anything: <code>forelabel prelabel</code> asks for suggestions, and what is labelled from
then on counts.</p>
"""


def write_report(
    out: Path,
    title: str,
    confirmations: Sequence[Confirmation],
    config: LabelingConfig,
    suspects: Sequence[Suspect],
    link: Link,
    picture: Callable[[Suspect], bytes | None],
) -> None:
    """Write the page.

    Args:
        suspects: worst first; pictures are asked for only of those that are shown.
        picture: the image file of one, None where it cannot be had.

    Raises:
        OSError: `out` cannot be written.
    """
    counted = figures(confirmations, config)
    name, now = html.escape(title), _moment(datetime.now(UTC).timestamp())
    page = [f"{_HEAD}<title>{name}</title><h1>{name}</h1>"]
    page.append(f'<p class="note">What became of Forelabel\'s suggestions, {now} UTC</p>\n')
    if counted.annotations:
        several = len(config.controls) > 1
        page += [_tiles(counted, suspects), _taken(counted, several)]
        if counted.overall.suggested:
            page.append(_changed(counted, several, link))
        page.append(_wrong(suspects, several, link, picture))
    else:
        page.append(_NOTHING)
        if counted.skipped:
            page.append(f'<p class="note">{_count(counted.skipped, "annotation")} skipped the task.</p>')
    # Label Studio's texts may hold lone surrogates, which UTF-8 cannot.
    out.write_text("".join(page) + "</html>\n", encoding="utf-8", errors="replace")


def _tiles(counted: Figures, suspects: Sequence[Suspect]) -> str:
    overall = counted.overall
    tiles = []
    if overall.suggested:
        tiles.append(
            ("taken", _percent(overall.share), f"of {_count(overall.suggested, 'suggestion')} taken as they were")
        )
    if counted.bins:
        latest = counted.bins[-1].tally
        tiles.append(("taken", _percent(latest.share), f"of the latest {latest.suggested:,}"))
    skipped = f", {counted.skipped:,} skipped and not counted" if counted.skipped else ""
    tiles.append(("taken", f"{counted.annotations:,}", f"annotation{'s' * (counted.annotations != 1)}{skipped}"))
    tiles.append(("errors", f"{len(suspects):,}", "confirmed labels to look at again"))
    return (
        '<div class="tiles">'
        + "".join(f'<a href="#{anchor}"><b>{number}</b>{text}</a>' for anchor, number, text in tiles)
        + "</div>\n"
    )


def _taken(counted: Figures, several: bool) -> str:
    parts = ['<section id="taken"><h2>Suggestions taken as they were</h2>']
    if not counted.overall.suggested:
        return "".join([*parts, _NO_SUGGESTIONS, "</section>\n"])
    parts.append(_MEANING)
    if counted.bins:
        parts += ["<h3>Over time</h3>", _chart(counted.bins, counted.overall)]
    else:
        parts.append(f'<p class="note">From {2 * BIN_AT_LEAST} suggestions on, a chart shows how this changes.</p>')
    if several:
        rows = [[_text(name), f"{t.suggested:,}", f"{t.taken:,}", _share(t)] for name, t in counted.questions.items()]
        parts += ["<h3>By question</h3>", _table(["Question", "#Suggested", "#Taken", "Share taken"], rows)]
    parts.append("<h3>By label, worst first</h3>")
    if counted.labels:
        rows = [
            [
                _text(each.label) + _of(each.question, several),
                f"{each.tally.suggested:,}",
                f"{each.tally.taken:,}",
                _share(each.tally),
                f"{each.confirmed:,}",
            ]
            for each in counted.labels
        ]
        parts.append(_table(["Label", "#Suggested", "#Taken", "Share taken", "#Confirmed"], rows))
    if counted.labels_left_out:
        parts.append(f'<p class="note">{_count(counted.labels_left_out, "label")} with better shares not listed.</p>')
    if counted.labels_rare:
        rare = _count(counted.labels_rare, "label")
        parts.append(f'<p class="note">{rare} suggested fewer than {LABEL_AT_LEAST} times not listed.</p>')
    return "".join([*parts, "</section>\n"])


def _changed(counted: Figures, several: bool, link: Link) -> str:
    parts = ['<section id="changed"><h2>What suggestions were changed to</h2>']
    if counted.pairs:
        rows = [
            [
                _text(each.suggested) + _of(each.question, several),
                _text(each.confirmed),
                f"{each.count:,}",
                " ".join(_link(task, link) for task in each.tasks),
            ]
            for each in counted.pairs
        ]
        parts.append(_table(["Suggested", "Confirmed", "#Times", "Latest tasks"], rows))
    else:
        parts.append("<p>In questions with one answer, no suggestion was changed to another label.</p>")
    if counted.pairs_left_out:
        parts.append(f'<p class="note">{_count(counted.pairs_left_out, "rarer pair")} not listed.</p>')
    return "".join([*parts, "</section>\n"])


def _wrong(suspects: Sequence[Suspect], several: bool, link: Link, picture: Callable[[Suspect], bytes | None]) -> str:
    parts = ['<section id="errors"><h2>Likely label errors</h2>']
    if not suspects:
        return "".join([*parts, "<p>No confirmed label is strongly contradicted by the others.</p></section>\n"])
    parts.append(
        "<p>Judged by all other confirmed images, these would have got another label, with odds of at least "
        f"{SUSPECT_ODDS:.0f} to 1. Worst first. Expect some of them to be right: look, and correct what is not.</p>"
        '<div class="grid">'
    )
    for each in suspects[:SUSPECTS_SHOWN]:
        data = picture(each)
        uri = thumbnail(data) if data else ""
        shown = f'<img alt="" src="{uri}">' if uri else '<div class="none">The picture cannot be read</div>'
        question = f"{_text(each.question)}, " if several else ""
        parts.append(
            f'<figure>{shown}<figcaption><div class="note">{question}task {_link(each.task, link)}</div>'
            f"{_bar(each.own, 'confirmed', each.confirmed, 'own')}{_bar(each.other, 'more likely', each.believed, '')}"
            "</figcaption></figure>"
        )
    parts.append("</div>")
    if left_out := len(suspects[SUSPECTS_SHOWN:]):
        parts.append(f'<p class="note">{_count(left_out, "less striking one")} not shown.</p>')
    return "".join([*parts, "</section>\n"])


def _chart(bins: Sequence[Bin], overall: Tally) -> str:
    """Bars over time. Horizontal positions are percentages, so that the texts keep their size on a phone."""
    step = 100 / len(bins)
    height = 180
    shapes = []
    for percent in (0, 25, 50, 75, 100):
        y = height * (100 - percent) / 100
        shapes.append(f'<line x1="0" x2="100%" y1="{y:g}" y2="{y:g}" stroke="#dde1e6"/>')
        shapes.append(f'<text x="-8" y="{y + 4:g}" text-anchor="end" fill="#556">{percent}%</text>')
    days = bins[-1].last - bins[0].first >= 2 * 86400
    ticks = {round(i * (len(bins) - 1) / min(4, len(bins) - 1)) for i in range(min(4, len(bins) - 1) + 1)}
    for i, each in enumerate(bins):
        bar = height * each.tally.share
        about = f"{_moment(each.first)} to {_moment(each.last)}: {each.tally.taken} of {each.tally.suggested}"
        shapes.append(
            f'<rect x="{(i + 0.1) * step:.2f}%" width="{0.8 * step:.2f}%" y="{height - bar:.1f}" height="{bar:.1f}" '
            f'fill="#5b93e6"><title>{about} taken</title></rect>'
        )
        if i in ticks:
            moment = datetime.fromtimestamp(each.first, UTC)
            day = f"{moment.day} {moment:%b}" if days else f"{moment:%H:%M}"
            shapes.append(
                f'<text x="{(i + 0.5) * step:.2f}%" y="{height + 18}" text-anchor="middle" fill="#556">{day}</text>'
            )
    y = height * (1 - overall.share)
    shapes.append(f'<line x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}" stroke="#b3541e" stroke-dasharray="5 4"/>')
    sizes = sorted({each.tally.suggested for each in bins})
    size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} or {sizes[-1]:,}"
    return (
        f'<div class="chart"><svg role="img" aria-label="Share taken over time">{"".join(shapes)}</svg></div>'
        f'<p class="note">Share taken as they were, in the order of time from {_moment(bins[0].first)} to '
        f"{_moment(bins[-1].last)} (UTC). Each bar is of {size} suggestions; the dashed line is the overall share, "
        f"{_percent(overall.share)}.</p>"
    )


def _of(question: str, several: bool) -> str:
    """What stands behind a label where there are several questions."""
    return f' <span class="note">{_text(question)}</span>' if several else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of cells that are HTML; a column whose header begins with # is of numbers."""
    kinds = ["number" if each[0] == "#" else "share" if each == "Share taken" else "text" for each in header]
    head = "".join(f'<th class="{kind}">{each.lstrip("#")}</th>' for kind, each in zip(kinds, header, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, row, strict=True)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _share(tally: Tally) -> str:
    if not tally.suggested:
        return ""
    width = f"{100 * tally.share:.1f}%"
    return f'<div class="bar"><i style="width:{width}"></i><span><b>{_percent(tally.share)}</b></span></div>'


def _bar(probability: float, role: str, label: str, kind: str) -> str:
    return (
        f'<div class="note">{role}</div><div class="bar {kind}"><i style="width:{100 * probability:.1f}%"></i>'
        f"<span>{_text(label)}<b>{_percent(probability)}</b></span></div>"
    )


def _link(task: int, link: Link) -> str:
    return f'<a href="{html.escape(link(task))}" target="_blank" rel="noreferrer">{task}</a>'


def _text(text: str) -> str:
    """Set apart, since labels may run from right to left."""
    cut = text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 1] + "…"
    return f"<bdi>{html.escape(cut)}</bdi>"


def _percent(share: float) -> str:
    """Only none is 0 %, and only all is 100 %."""
    if 0 < share < 0.005:
        return "&lt;1%"
    if 0.995 <= share < 1:
        return "&gt;99%"
    return f"{100 * share:.0f}%"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _moment(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment.day} {moment:%b %Y, %H:%M}"
