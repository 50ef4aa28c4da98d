"""A paired difference in words: a loss or a gain of so much, or the largest loss that may have gone unseen."""

from __future__ import annotations

from math import ceil

from eval.statistics import CONFIDENCE, Difference

DECIMALS = {"points": 1, "percent": 2}
UNIT = {"points": "points", "percent": "%"}


def is_significant(difference: Difference, p_adjusted: float) -> bool:
    """Whether both the corrected test and the interval exclude "no difference"."""
    return p_adjusted < 1 - CONFIDENCE and not difference.interval.low <= 0 <= difference.interval.high


def verdict(difference: Difference, p_adjusted: float | None = None) -> str:
    """What the difference means, in its unit; `p_adjusted` is p after Holm's correction for several comparisons."""
    unit = UNIT[difference.unit]
    if difference.better == difference.worse == 0 and difference.unit == "percent":
        return f"identical on all {difference.items} texts"
    if is_significant(difference, difference.p if p_adjusted is None else p_adjusted):
        return f"{_amount(difference)} {unit}"
    unseen = difference.largest_loss
    text = f"no loss detectable above {_rounded_up(unseen, DECIMALS[difference.unit])} {unit}" if unseen else "no loss"
    if is_significant(difference, difference.p):
        text += f" ({_amount(difference)} before Holm's correction)"
    return text


def _amount(difference: Difference) -> str:
    """`loss of 2.1 ± 0.5`, with as many decimals as the error needs."""
    decimals = DECIMALS[difference.unit]
    while decimals < 6 and round(difference.interval.half, decimals) == 0 and difference.interval.half > 0:
        decimals += 1
    word = "loss" if difference.is_loss else "gain"
    return f"{word} of {abs(difference.value):.{decimals}f} ± {difference.interval.half:.{decimals}f}"


def _rounded_up(value: float, decimals: int) -> str:
    """Rounded so that the claim stays true; the tiny part is for inexact numbers such as 0.6000000001."""
    while decimals < 6 and value < 10**-decimals:
        decimals += 1
    return f"{ceil(value * 10**decimals - 1e-6) / 10**decimals:.{decimals}f}"
