"""Models that tests of pure code are about, and rules that fit them."""

from __future__ import annotations

from hypothesis import strategies as st

from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.schedule import FULL, SkipSchedule

V2_LITE = MoEShape(27, tuple(range(1, 27)), 6, 64, 2, False, "softmax")
V3 = MoEShape(61, tuple(range(3, 61)), 8, 256, 1, True, "sigmoid", n_group=8, topk_group=4)
NO_SHARED = MoEShape(4, (0, 1, 2, 3), 4, 8, 0, True, "softmax")

counts = st.integers(0, 12)


def one_or_each(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """One value, or one for each MoE layer of V2-Lite."""
    return values | st.lists(values, min_size=26, max_size=26).map(tuple)


@st.composite
def schedules(draw: st.DrawFn) -> SkipSchedule:
    """Any rule that is valid on V2-Lite."""
    rule = draw(st.sampled_from(["na", "schedule", "layers", "min_ratio", "min_weight", "top_p", FULL]))
    values = {
        "na": counts,
        "schedule": st.tuples(counts, counts, counts, st.integers(1, 26)),
        "layers": st.tuples(*[counts] * 26),
        "min_ratio": one_or_each(st.floats(0, 1)),
        "min_weight": one_or_each(st.floats(0, 1)),
        "top_p": one_or_each(st.floats(0, 1, exclude_min=True)),
    }
    options = {
        "min_na": draw(st.none() | counts),
        "rescale": draw(one_or_each(st.sampled_from(["router", "mass"]) | st.floats(0.01, 10))),
    }
    return SkipSchedule(**{} if rule == FULL else {rule: draw(values[rule])}, **options)  # type: ignore[arg-type]
