"""Which implementation ``apply_skip`` takes."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from sglang_moe_opt import routing
from sglang_moe_opt.routing import reference
from tests.routing.cases import Case, build, run


def test_cpu_tensors_take_the_reference() -> None:
    problem = build(Case(seed=3, num_tokens=20, num_slots=6, num_shared=1, remapped=True))
    here, there = run(routing.apply_skip, problem), run(reference.apply_skip, problem)
    assert all(torch.equal(a, b) for a, b in zip(vars(here).values(), vars(there).values(), strict=True))
    assert (here.ids != problem.ids).any()


def test_cuda_tensors_take_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kernel = SimpleNamespace(apply_skip=lambda *args, **kwargs: calls.append((args, kwargs)))
    monkeypatch.setattr(routing, "triton_kernel", kernel, raising=False)
    problem = build(Case(seed=3, num_tokens=2, num_slots=6))
    fields = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)}
    positional = ("weights", "ids", "choice", "rows", "table", "layer")
    args = [fields.pop(name) for name in positional]
    args[0] = SimpleNamespace(is_cuda=True)
    routing.apply_skip(*args, **fields)
    assert calls == [(tuple(args), fields)]
