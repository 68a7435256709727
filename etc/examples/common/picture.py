#!/usr/bin/env python3
"""A picture (SVG) of a returned result: the deformed plate coloured by von Mises stress, and its old outline.

返ってきた結果 (.frd) の図を SVG で描く: 変形後の形、相当応力の色、元の輪郭。

    picture.py plate.frd picture.svg [TITLE]

Standard library only; reads what ccx or the bundled solver wrote. Labels are Japanese and English.
"""
from __future__ import annotations

import collections
import html
import math
import pathlib
import sys

import frd

WIDTH, PLOT_LEFT, PLOT_TOP, PLOT_WIDTH, BAR_WIDTH = 1000, 50, 96, 770, 26
SHADES = 60             # colours in the bar
PATCH = 6               # elements are painted in patches of about this size, in pixels
SHOWN = 0.05            # the largest displacement is drawn about this long, as a share of the model
COLOURS = ((48, 18, 59), (69, 91, 205), (62, 156, 254), (24, 215, 203), (72, 248, 130), (164, 252, 60),
           (226, 220, 56), (254, 163, 49), (239, 89, 17), (194, 36, 3), (122, 4, 3))     # "turbo"
FONT = "'Noto Sans CJK JP','Noto Sans JP','Hiragino Sans','Yu Gothic','IPAexGothic','IPAGothic',sans-serif"

Point = tuple[float, float]


def colour(share: float) -> str:
    """The bar's colour at 0 … 1."""
    place = min(max(share, 0.0), 1.0) * (len(COLOURS) - 1)
    i = min(int(place), len(COLOURS) - 2)
    mixed = (round(a + (b - a) * (place - i)) for a, b in zip(COLOURS[i], COLOURS[i + 1]))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def nice_step(span: float, wanted: int) -> float:
    """1, 2 or 5 times a power of ten that cuts `span` into about `wanted` parts."""
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= raw * 0.999)


def between(values: list[float], a: float, b: float) -> float:
    """An 8-node element's value at its own coordinates (a, b), both -1 … 1."""
    signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    shapes = [(1 + p * a) * (1 + q * b) * (p * a + q * b - 1) / 4 for p, q in signs]
    inner_a, inner_b = (1 - a * a) / 2, (1 - b * b) / 2
    shapes += [inner_a * (1 - b), inner_b * (1 + a), inner_a * (1 + b), inner_b * (1 - a)]
    return sum(shape * value for shape, value in zip(shapes, values))


class Picture:
    """Places the model on the page and collects the drawing."""

    def __init__(self, result: frd.Result, title: str) -> None:
        self.result, self.title = result, title
        self.mises = result.mises()
        xs, ys = zip(*((p[0], p[1]) for p in result.nodes.values()))
        self.span = max(xs) - min(xs)
        self.factor = self._factor(result.largest_displacement()[0])
        self.low_x, self.high_y = min(xs), max(ys)
        self.scale = PLOT_WIDTH / (self.span * (1 + SHOWN))
        self.plot_height = (max(ys) - min(ys)) * self.scale * (1 + SHOWN)
        self.height = round(PLOT_TOP + self.plot_height + 96)
        self.step = nice_step(max(self.mises.values()), 8)
        self.top = self.step * math.ceil(max(self.mises.values()) / self.step - 1e-9)

    def _factor(self, largest: float) -> float:
        """How many times the displacements are enlarged: a round number."""
        if largest <= 0:
            return 1.0
        return max(nice_step(SHOWN * self.span / largest * 0.75, 1), 1.0)

    def page(self, x: float, y: float) -> Point:
        return PLOT_LEFT + (x - self.low_x) * self.scale, PLOT_TOP + (self.high_y - y) * self.scale

    def moved(self, n: int, factor: float | None = None) -> Point:
        (x, y), u = self.result.nodes[n][:2], self.result.displacements[n]
        factor = self.factor if factor is None else factor
        return self.page(x + factor * u[0], y + factor * u[1])

    def svg(self) -> str:
        body = [*self._heading(), *self._patches(), *self._lines(), *self._mark(), *self._bar(), *self._footer()]
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" font-family="{FONT}" font-size="14" fill="#223">',
            f"<title>{html.escape(self.title)}</title>",
            f'<rect width="{WIDTH}" height="{self.height}" fill="#fff"/>', *body, "</svg>"]) + "\n"

    def _heading(self) -> list[str]:
        return [f'<text x="{PLOT_LEFT}" y="40" font-size="22" font-weight="600">{html.escape(self.title)}</text>',
                f'<text x="{PLOT_LEFT}" y="66" fill="#667">変形は {self.factor:g} 倍に拡大、点線は元の輪郭 / '
                f'deformation enlarged {self.factor:g} times, dashed: before loading</text>']

    def _patches(self) -> list[str]:
        """All patches of one shade make one path: a small file that draws quickly."""
        shades: dict[int, list[str]] = collections.defaultdict(list)
        for ring in self.result.elements.values():
            corners = [self.moved(n) for n in ring]
            xs, ys = (list(part) for part in zip(*corners))
            values = [self.mises[n] for n in ring]
            across, along = _cuts(corners[0], corners[1]), _cuts(corners[1], corners[2])
            for a, a2 in zip(across, across[1:]):
                for b, b2 in zip(along, along[1:]):
                    share = between(values, (a + a2) / 2, (b + b2) / 2) / self.top
                    corners = [(between(xs, p, q), between(ys, p, q)) for p, q in ((a, b), (a2, b), (a2, b2), (a, b2))]
                    shades[min(max(int(share * SHADES), 0), SHADES - 1)].append(_path(corners) + "Z")
        painted = [(colour((shade + .5) / SHADES), "".join(paths)) for shade, paths in sorted(shades.items())]
        return [f'<path d="{path}" fill="{paint}" stroke="{paint}" stroke-width=".6"/>' for paint, path in painted]

    def _lines(self) -> list[str]:
        """Element edges, the outline of the deformed shape, and the dashed outline before."""
        edges: dict[tuple[int, int], tuple[int, int, int]] = {}
        uses: dict[tuple[int, int], int] = collections.Counter()
        for ring in self.result.elements.values():
            for k in range(4):
                first, middle, last = ring[k], ring[k + 4], ring[(k + 1) % 4]
                edges[min(first, last), max(first, last)] = (first, middle, last)
                uses[min(first, last), max(first, last)] += 1
        rim = [edge for key, edge in edges.items() if uses[key] == 1]
        mesh = "".join(_path([self.moved(n) for n in edge]) for edge in edges.values())
        outline = "".join(_path([self.moved(n) for n in edge]) for edge in rim)
        before = "".join(_path([self.moved(n, 0.0) for n in edge]) for edge in _joined(rim))
        return [f'<path d="{mesh}" fill="none" stroke="#000" stroke-opacity=".22" stroke-width=".6"/>',
                f'<path d="{outline}" fill="none" stroke="#223" stroke-width="1.2" stroke-linecap="round"/>',
                f'<path d="{before}" fill="none" stroke="#556" stroke-width="1.1" stroke-dasharray="5 4"/>']

    def _mark(self) -> list[str]:
        """Where the stress is largest."""
        value, n = self.result.largest_mises()
        x, y = self.moved(n)
        middle_x, middle_y = PLOT_LEFT + PLOT_WIDTH / 2, PLOT_TOP + self.plot_height / 2
        text_x, text_y = x + max(min(middle_x - x, 90), -90), y + (48 if y < middle_y else -48)
        line_end = text_y + (-12 if y < middle_y else 12)
        return [f'<path d="M{x:.1f} {y:.1f}L{text_x:.1f} {line_end:.1f}" stroke="#000" stroke-width="1.2"/>',
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="#fff" stroke="#000" stroke-width="1.6"/>',
                f'<text x="{text_x:.1f}" y="{text_y + 5:.1f}" text-anchor="middle" font-weight="600" stroke="#fff" '
                f'stroke-width="5" stroke-linejoin="round" paint-order="stroke">最大 / max {value:.1f} MPa</text>']

    def _bar(self) -> list[str]:
        left, top, height = PLOT_LEFT + PLOT_WIDTH + 42, PLOT_TOP + 12, self.plot_height - 24
        lines = [f'<text x="{left}" y="{top - 34}" font-weight="600">相当応力 von Mises</text>',
                 f'<text x="{left}" y="{top - 14}" fill="#667">[MPa]</text>']
        for k in range(SHADES):
            y = top + height * (1 - (k + 1) / SHADES)
            lines.append(f'<rect x="{left}" y="{y:.2f}" width="{BAR_WIDTH}" height="{height / SHADES + .6:.2f}" '
                         f'fill="{colour((k + .5) / SHADES)}"/>')
        lines.append(f'<rect x="{left}" y="{top}" width="{BAR_WIDTH}" height="{height:.1f}" fill="none" '
                     'stroke="#223"/>')
        for k in range(round(self.top / self.step) + 1):
            y = top + height * (1 - k * self.step / self.top)
            lines.append(f'<path d="M{left + BAR_WIDTH} {y:.1f}h6" stroke="#223"/>'
                         f'<text x="{left + BAR_WIDTH + 11}" y="{y + 5:.1f}">{k * self.step:g}</text>')
        return lines

    def _footer(self) -> list[str]:
        y = PLOT_TOP + self.plot_height + 34
        largest, _ = self.result.largest_displacement()
        length = nice_step(self.span, 4)
        end = PLOT_LEFT + length * self.scale
        facts = (f"最大変位 / largest displacement {largest:.4f} mm · {len(self.result.elements)} 要素 / elements · "
                 f"{len(self.result.nodes)} 節点 / nodes")
        return [f'<path d="M{PLOT_LEFT} {y - 10:.1f}v10H{end:.1f}v-10" fill="none" stroke="#223"/>',
                f'<text x="{(PLOT_LEFT + end) / 2:.1f}" y="{y - 5:.1f}" text-anchor="middle">{length:g} mm</text>',
                f'<text x="{end + 28:.1f}" y="{y - 2:.1f}">{facts}</text>',
                f'<text x="{PLOT_LEFT}" y="{y + 34:.1f}" fill="#667">計算 / computed by '
                f'{html.escape(self.result.program)}</text>']


def _cuts(start: Point, end: Point) -> list[float]:
    """Where an edge of this length on the page is cut, in the element's own coordinate."""
    parts = min(max(round(math.dist(start, end) / PATCH), 1), 12)
    return [-1 + 2 * k / parts for k in range(parts + 1)]


def _path(points: list[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _joined(edges: list[tuple[int, int, int]]) -> list[list[int]]:
    """Edges put end to end, so that the dashes run through the corners of elements."""
    following = {first: (middle, last) for first, middle, last in edges}
    chains = []
    while following:
        chain = [next(iter(following))]
        while chain[-1] in following:
            chain += following.pop(chain[-1])
        chains.append(chain)
    return chains


def draw(result: pathlib.Path, svg: pathlib.Path, title: str = "円孔付き鋼板 / Plate with a hole") -> frd.Result:
    """Reads `result`, writes `svg`, returns what was read."""
    found = frd.read(result)
    svg.write_text(Picture(found, title).svg(), encoding="utf-8")
    return found


def main() -> int:
    if not 3 <= len(sys.argv) <= 4:
        print("usage: picture.py RESULT.frd PICTURE.svg [TITLE]", file=sys.stderr)
        return 2
    try:
        draw(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), *sys.argv[3:])
    except (frd.ResultError, OSError, ValueError) as error:
        print(f"picture.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
