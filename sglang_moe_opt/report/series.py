"""How series of a plot are told apart: a colour and a marker by the series' number.

The colours were chosen by search: the nearest two differ by more than 18 (CIE 1976) to readers with and without
colour blindness, and each stands out from the page. The shape of the marker tells the same without colour.
"""

from __future__ import annotations

from sglang_moe_opt.report import marks

LIGHT = ("#4d535e", "#1950e5", "#d26b05", "#00a169", "#a16bc9", "#674000", "#cf6aa3", "#4a1b91")
DARK = ("#d3d8e0", "#5abcff", "#d78938", "#34eba0", "#a8549e", "#ffdc3a", "#ce455c", "#8956f0")
SHAPES = (
    marks.CIRCLE,
    marks.UP,
    marks.SQUARE,
    marks.DIAMOND,
    marks.DOWN,
    marks.PLUS,
    marks.PENTAGON,
    marks.HOURGLASS,
)
MATPLOTLIB = ("o", "^", "s", "D", "v", "P", "p", "X")
"""The same markers, or those nearest to them."""


def shape(number: int) -> int:
    """Index of its marker; a second turn through the colours meets other markers."""
    return (number + number // len(LIGHT)) % len(SHAPES)


def color(number: int) -> int:
    return number % len(LIGHT)


def path(number: int) -> str:
    return SHAPES[shape(number)]


def kind(number: int) -> str:
    """The class that carries its colour."""
    return f"s{color(number)}"


def style() -> str:
    """The style sheet of the colours."""
    light, dark = (
        " ".join(f".s{number} {{ --own: {value}; }}" for number, value in enumerate(palette))
        for palette in (LIGHT, DARK)
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n"
