"""What is read of a server's `/metrics`."""

from __future__ import annotations

import pytest

from sglang_moe_opt.exposition import samples, total

TEXT = """\
# HELP a_total Of something.
# TYPE a_total counter
a_total{phase="decode",profile="x, \\"y\\"} z"} 2.0
a_total{phase="prefill",profile="x"} 3e1
sglang:b_total{model_name="m"} 5
lonely 1.5
"""


def test_samples_of_a_name_and_labels_are_summed() -> None:
    assert total(TEXT, "a_total") == 32
    assert total(TEXT, "a_total", profile='x, "y"} z') == 2
    assert total(TEXT, "a_total", phase="prefill", profile="x") == 30
    assert total(TEXT, "sglang:b_total") == 5
    assert total(TEXT, "lonely") == 1.5
    assert total(TEXT, "a_total", phase="other") is None
    assert total(TEXT, "missing") is None
    assert [one.name for one in samples(TEXT)] == ["a_total", "a_total", "sglang:b_total", "lonely"]


def test_what_is_no_exposition_is_refused() -> None:
    with pytest.raises(ValueError):
        total("<html>{not} metrics", "a")
