"""What `moe-opt predict` measures and fits: this machine's ceilings, and the cost model's parameters."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sglang_moe_opt.fields import FieldError
from sglang_moe_opt.perfmodel.fit import Requests, fit
from sglang_moe_opt.perfmodel.hardware import THIS, Hardware, save, this_file
from sglang_moe_opt.perfmodel.measurements import read_measurements
from sglang_moe_opt.perfmodel.step import Setup
from sglang_moe_opt.perfmodel.validation import compare, summarize


def calibrate() -> dict[str, Any]:
    """Measure this machine's CPU with the kernels that serve on it, and keep the result for `--hardware this`."""
    from loadtest.probe import Probe

    machine = Probe().machine()
    memory_bytes = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    hardware = Hardware(THIS, "cpu", machine.read_bandwidth, machine.peak_flops, memory_bytes)
    save(hardware, this_file())
    return {"file": str(this_file()), **asdict(hardware)}


def fit_file(
    setup: Setup,
    file: Path,
    parameters_file: Path,
    input_tokens: int | None,
    output_tokens: int | None,
    fit_all: bool,
    hold: Sequence[str],
    graph_max_batch: int | None,
    out: Path | None,
) -> dict[str, Any]:
    """Fit, write the parameters, and compare all curves of the file; `out` gets a plot. Raises FieldError."""
    measured = read_measurements(file, setup.model.shape)
    requests = Requests(input_tokens or measured.input_tokens or 1024, output_tokens or measured.output_tokens or 1024)
    held = {"routing_skew": 0.0} if measured.routes_evenly else {}
    fitted = fit(
        setup,
        requests,
        measured.points if fit_all else measured.baseline,
        held=held | _held(hold),
        graph_max_batch=graph_max_batch,
        provenance={
            "file": file.name,
            "curves": "all" if fit_all else measured.baseline[0].curve.label,
            "hardware": setup.hardware.name,
            "tp": setup.split.tp,
            "ep": setup.split.ep,
            **asdict(requests),
        },
    )
    fitted.save(parameters_file)
    compared = compare(setup, requests, measured, fitted)
    if out is not None:
        from sglang_moe_opt.perfmodel.plots import write_comparison

        write_comparison(compared, f"{file.name}, {setup.hardware.name}, tp {setup.split.tp}", out / "fit.png")
    return {
        "file": str(parameters_file),
        **fitted.to_object(),
        "errors": summarize(compared),
        "points": [point.to_object() for point in compared],
    }


def _held(texts: Sequence[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise FieldError("--hold", text, "NAME=VALUE, such as routing_skew=0") from None
    return found
