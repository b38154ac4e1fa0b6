"""Plots of lines, as SVG."""

import math
from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _RIGHT = 380, 210, 58, 34, 34, 14
_COLOURS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#868e96", "#c2255c")
_COLUMNS = 2
_TICKS = 4


def plots(charts: Sequence[tuple[str, str, Mapping[str, Points], bool]]) -> str:
    """Returns an SVG with a small chart for each title.

    Args:
        charts: title, name of the horizontal axis, points by the name of their line, and whether the
            horizontal axis is logarithmic. The vertical one begins at 0.
    """
    rows = -(-len(charts) // _COLUMNS)
    width, height = _WIDTH * _COLUMNS, _HEIGHT * rows
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, (title, axis, lines, is_log) in enumerate(charts):
        left, top = _WIDTH * (number % _COLUMNS), _HEIGHT * (number // _COLUMNS)
        parts.append(f'<g transform="translate({left},{top})">')
        parts += _chart(title, axis, {name: points for name, points in lines.items() if points}, is_log)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _chart(title: str, axis: str, lines: Mapping[str, Points], is_log: bool) -> Iterator[str]:
    yield f'<text x="{_LEFT}" y="14" font-weight="bold">{escape(title)}</text>'
    if not lines:
        return
    across = [_place(x, is_log) for points in lines.values() for x, _ in points]
    low, high = min(across), max(across)
    most = max(y for points in lines.values() for _, y in points) * 1.05 or 1.0
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x_of(x: float) -> float:
        return _LEFT + (_place(x, is_log) - low) / ((high - low) or 1) * inner_width

    def y_of(y: float) -> float:
        return _TOP + inner_height * (1 - y / most)

    for number in range(_TICKS + 1):
        y = y_of(most * number / _TICKS)
        yield f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#dee2e6"/>'
        yield f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{most * number / _TICKS:.3g}</text>'
    longest = max(lines.values(), key=len)
    for x, _ in longest[:: max(1, len(longest) // 6)]:
        yield f'<text x="{x_of(x):.1f}" y="{_HEIGHT - 20}" text-anchor="middle">{x:g}</text>'
    yield f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{escape(axis)}</text>'
    for number, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        yield f'<text x="{_LEFT + 90 * number}" y="28" fill="{colour}">{escape(name)}</text>'


def _place(x: float, is_log: bool) -> float:
    return math.log(max(x, 1e-9)) if is_log else x
