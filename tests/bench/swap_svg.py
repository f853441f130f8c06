"""A picture of what a node held in memory when, one band for each scheduler, without any drawing library."""

from collections.abc import Iterator, Mapping
from html import escape

from tests.support.virtual_node import Run

LEFT, WIDTH, LANE, GAP, TOP = 150, 900, 16, 46, 64
SHOWN_MS = 1_800_000
COLOURS = ("#3b6fb6", "#2f8f5b", "#b5651d", "#7a4fa3", "#a33b5a")
LOADING = "#c9c9c9"


def drawing(title: str, runs: Mapping[str, Run]) -> str:
    """The first half hour: grey is loading, pale is in memory, full colour is generating, a triangle is a swap."""
    end_ms = min(SHOWN_MS, max(run.end_ms for run in runs.values()))
    models = [spec.name for spec in next(iter(runs.values())).specs]
    band = len(models) * LANE + GAP
    height = TOP + len(runs) * band + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 24} {height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="12" y="24" font-size="16">{escape(title)}</text>',
        *_legend(),
    ]
    for at, (name, run) in enumerate(runs.items()):
        parts.extend(_band(name, run, models, TOP + at * band, end_ms))
    parts.extend(_axis(TOP + len(runs) * band - GAP + 24, end_ms))
    return "\n".join([*parts, "</svg>\n"])


def _x(ms: int, end_ms: int) -> float:
    return round(LEFT + WIDTH * min(ms, end_ms) / end_ms, 1)


def _band(name: str, run: Run, models: list[str], top: int, end_ms: int) -> Iterator[str]:
    waits = sorted(fate.wait_ms for fate in run.served)
    said = (
        f"{run.loads} loads, done after {run.end_ms / 60_000:.0f} min, mean wait {sum(waits) / len(waits) / 1000:.0f} s"
    )
    yield f'<text x="12" y="{top + 12}" font-weight="600">{escape(name)}</text>'
    yield f'<text x="{LEFT}" y="{top + 12}">{said}</text>'
    for lane, model in enumerate(models):
        y, colour = top + 20 + lane * LANE, COLOURS[lane % len(COLOURS)]
        yield f'<text x="{LEFT - 8}" y="{y + 11}" text-anchor="end">{escape(model)}</text>'
        for span in run.spans:
            if span.model == model and span.from_ms < end_ms and span.what != "unloading":
                fill = f'fill="{LOADING}"' if span.what == "loading" else f'fill="{colour}" fill-opacity="0.25"'
                yield _bar(span.from_ms, span.to_ms, end_ms, y, fill)
                if span.what == "loading":
                    x = _x(span.from_ms, end_ms)
                    yield f'<path d="M{x} {y + 1}l5 3l-5 3z" fill="#c0392b"/>'
        for fate in run.served:
            if fate.job.model == model and fate.start_ms < end_ms:
                yield _bar(fate.start_ms, fate.end_ms, end_ms, y + 3, f'fill="{colour}"', LANE - 9)


def _bar(from_ms: int, to_ms: int, end_ms: int, y: int, fill: str, height: int = LANE - 3) -> str:
    x = _x(from_ms, end_ms)
    return f'<rect x="{x}" y="{y}" width="{max(0.5, round(_x(to_ms, end_ms) - x, 1))}" height="{height}" {fill}/>'


def _legend() -> Iterator[str]:
    y = 42
    marks = ((LOADING, "1", "loading"), (COLOURS[0], "0.25", "in memory"), (COLOURS[0], "1", "generating"))
    for at, (colour, opacity, what) in enumerate(marks):
        x = LEFT + at * 120
        yield f'<rect x="{x}" y="{y - 9}" width="14" height="10" fill="{colour}" fill-opacity="{opacity}"/>'
        yield f'<text x="{x + 20}" y="{y}">{what}</text>'
    x = LEFT + len(marks) * 120
    yield f'<path d="M{x} {y - 8}l7 4l-7 4z" fill="#c0392b"/><text x="{x + 14}" y="{y}">a load begins</text>'


def _axis(y: int, end_ms: int) -> Iterator[str]:
    yield f'<path d="M{LEFT} {y}h{WIDTH}" stroke="#888" fill="none"/>'
    for minute in range(0, end_ms // 60_000 + 1, 5):
        x = _x(minute * 60_000, end_ms)
        yield f'<path d="M{x} {y}v4" stroke="#888"/><text x="{x}" y="{y + 17}" text-anchor="middle">{minute} min</text>'
