"""What a rule may say: bad values name their field."""

from __future__ import annotations

import pytest

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.schedule import Limits, SkipSchedule
from tests.model_shapes import NO_SHARED, V2_LITE


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"na": 1, "top_p": 0.5}, "schedule"),
        ({"na": True}, "na"),
        ({"na": -1}, "na"),
        ({"na": 2.0}, "na"),
        ({"schedule": (1, 2, 3)}, "schedule"),
        ({"schedule": (1, 2, 3, 0)}, "schedule[3]"),
        ({"schedule": (1, "2", 3, 1)}, "schedule[1]"),
        ({"layers": ()}, "layers"),
        ({"layers": (1, None)}, "layers[1]"),
        ({"min_ratio": float("nan")}, "min_ratio"),
        ({"min_ratio": 1.01}, "min_ratio"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": float("inf")}, "top_p"),
        ({"rescale": "half"}, "rescale"),
        ({"rescale": 0}, "rescale"),
        ({"rescale": 1e-50}, "rescale"),
        ({"rescale": 11}, "rescale"),
        ({"rescale": True}, "rescale"),
        ({"min_weight": 1.01}, "min_weight"),
        ({"min_weight": (0.1, -0.1)}, "min_weight[1]"),
        ({"min_weight": 0.1, "min_ratio": 0.1}, "schedule"),
        ({"min_ratio": ()}, "min_ratio"),
        ({"min_ratio": (0.1, 0.2, 1.01)}, "min_ratio[2]"),
        ({"min_ratio": (0.1, None)}, "min_ratio[1]"),
        ({"min_ratio": (0.1, (0.2,))}, "min_ratio[1]"),
        ({"min_ratio": (True,)}, "min_ratio[0]"),
        ({"top_p": [0.5, 0]}, "top_p[1]"),
        ({"top_p": ["0.5"]}, "top_p[0]"),
        ({"rescale": (1, "half")}, "rescale[1]"),
        ({"rescale": ("mass", 11)}, "rescale[1]"),
        ({"layer_base": "dense"}, "layer_base"),
        ({"na": 2, "consolidate": 0}, "consolidate"),
        ({"na": 2, "consolidate": "3"}, "consolidate"),
        ({"min_ratio": 0.2, "consolidate": 2}, "consolidate"),
        ({"consolidate": 2}, "consolidate"),
    ],
)
def test_bad_values_name_their_field(values: dict[str, object], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        SkipSchedule(**values)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_lists_and_tuples_are_one_schedule() -> None:
    assert SkipSchedule(layers=[1, 2]) == SkipSchedule(layers=(1, 2))  # type: ignore[arg-type]


def test_with_floor_raises_magnitude_rules_only() -> None:
    assert SkipSchedule(min_ratio=0.2).with_floor(2) == SkipSchedule(min_ratio=0.2, min_na=2)
    assert SkipSchedule(min_weight=0.2).with_floor(2) == SkipSchedule(min_weight=0.2, min_na=2)
    assert SkipSchedule(top_p=0.2, min_na=3).with_floor(2).min_na == 3
    assert SkipSchedule(na=2).with_floor(3) == SkipSchedule(na=2)


def test_a_floor_never_exceeds_the_models_top_k() -> None:
    assert Limits.of(V2_LITE, min_na=8).min_na == 6
    assert Limits.of(NO_SHARED).min_na == 1
