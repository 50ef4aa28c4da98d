"""What the fuzz tests draw from: values that YAML and JSON can hold, near to and far from what a format allows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

BOUNDED = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "100")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""The same examples at every run, in a few seconds; FUZZ_EXAMPLES=5000 looks further."""

numbers = st.one_of(
    st.integers(-3, 70), st.integers(), st.floats(), st.sampled_from([2.0, 1e300, 10**40, -0.0, 1 << 63])
)
_names = st.sampled_from(["full", "custom", "fast", "", "../x", "/dev/zero", "\0", "__proto__"])
text = st.one_of(st.text(max_size=20), _names)
scalars = st.one_of(st.none(), st.booleans(), numbers, text, st.binary(max_size=4), st.dates())
junk: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(scalars, inner, max_size=4)),
    max_leaves=16,
)


def objects(keys: Sequence[str], values: st.SearchStrategy[Any] = junk) -> st.SearchStrategy[dict[Any, Any]]:
    """Objects with some of the keys, and now and then with another one."""
    known = st.sampled_from(list(keys))
    return st.dictionaries(st.one_of(known, known, text), values, max_size=5)
