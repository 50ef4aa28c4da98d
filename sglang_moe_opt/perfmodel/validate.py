"""Fit at the model's own number of experts, predict everything else: the numbers behind docs/predict.md.

python -m sglang_moe_opt.perfmodel.validate --table8 FILE --loadtest DIR --loadtest DIR --out FILE
writes FILE, a plot beside it for each source, and with --write-defaults the parameters that come with the package.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from sglang_moe_opt.files import read_json, write_atomically
from sglang_moe_opt.perfmodel.curve import make_curve
from sglang_moe_opt.perfmodel.fit import Requests, fit
from sglang_moe_opt.perfmodel.hardware import PRESETS, Hardware
from sglang_moe_opt.perfmodel.measurements import read_measurements
from sglang_moe_opt.perfmodel.model import ServedModel, find_model
from sglang_moe_opt.perfmodel.parallel import Parallelism
from sglang_moe_opt.perfmodel.parameters import PRIORS, Fitted
from sglang_moe_opt.perfmodel.plots import write_comparison
from sglang_moe_opt.perfmodel.predict import Predictor
from sglang_moe_opt.perfmodel.step import Setup
from sglang_moe_opt.perfmodel.validation import Compared, compare, summarize

TABLE_8_GRAPHS: Final = 160
"""Largest batch that SGLang 0.4.4 captures as a CUDA graph on a GPU with more than 25 GB, however many devices
(its server_args.py). The versions since capture more: 0.5.23 up to 256 sequences below tp 4, and 512 from there on."""
HALF_PUBLISHED: Final = {2: 1.05, 12: 1.41, 16: 1.41, 32: 1.41, 128: 1.27, 256: 1.05}
"""DeepSeek-V2-Lite with 32 of 64 experts, 2 A800: speed-ups as the paper's text gives them (arXiv 2505.03531)."""


def main(
    out: Annotated[Path, typer.Option(help="The JSON file to write; plots go beside it.")],
    table8: Annotated[Path, typer.Option(help="The paper's Table 8 as CSV.")],
    loadtest: Annotated[list[Path], typer.Option(help="Folder of a load test's results; repeatable.")],
    write_defaults: Annotated[bool, typer.Option("--write-defaults", help="Write the package's parameters.")] = False,
) -> None:
    """Validate the cost model."""
    gpu, report = _table8(table8, out)
    sources: dict[str, Any] = {"table8": report}
    first: Fitted | None = None
    for folder in loadtest:
        fitted, sources[folder.name] = _loadtest(folder, out, first)
        first = first or fitted
    for source, content in sources.items():
        for label, errors in content["errors"].items():
            print(f"{source:24} {label:10} {json.dumps(errors)}")
    content = {"command": ["python", "-m", "sglang_moe_opt.perfmodel.validate", *sys.argv[1:]], "sources": sources}
    write_atomically(out, json.dumps(content, indent=1) + "\n")
    if write_defaults:
        folder = Path(__file__).with_name("fitted")
        gpu.save(folder / "gpu.json")
        if first is not None:  # real models' routers are not as even as random ones
            skew = PRIORS["cpu"]["routing_skew"][0]
            replace(first, values=replace(first.values, routing_skew=skew)).save(folder / "cpu.json")


def _table8(path: Path, out: Path) -> tuple[Fitted, dict[str, Any]]:
    model = find_model("deepseek-v2-lite")
    setup = Setup(model, PRESETS["a800-pcie"], Parallelism(tp=2))
    measured, requests = read_measurements(path, model.shape), Requests(1024, 1024)
    source = {"file": path.name, "column": measured.baseline[0].curve.label, "hardware": "a800-pcie", "tp": 2}
    fitted = fit(setup, requests, measured.baseline, graph_max_batch=TABLE_8_GRAPHS, provenance=source)
    compared = compare(setup, requests, measured, fitted)
    full, half = (make_curve(model.shape, f"{kept}", experts=kept) for kept in (64, 32))
    predictor = Predictor(setup, fitted)
    pruned = {
        str(level): {"published": value, "predicted": round(predictor.speedup(half, full, level), 3)}
        for level, value in HALF_PUBLISHED.items()
    }
    _plot(compared, "DeepSeek-V2-Lite, 2 A800: fitted to na 6 alone", out, "table8")
    return fitted, {**_report(fitted, compared), "half_of_the_experts": pruned}


def _loadtest(folder: Path, out: Path, transferred: Fitted | None) -> tuple[Fitted, dict[str, Any]]:
    """Fit to the first arm; the first folder's parameters are tried on the others as they are, too."""
    manifest: Any = read_json(folder / "manifest.json", "--loadtest")
    model = ServedModel.from_config(manifest["model_config_json"])
    # ceilings are those probed beside each point; these would stand in for one that was not
    hardware = Hardware("this", "cpu", 50e9, 800e9, 1e9 * manifest["machine"]["memory_gb"])
    setup = Setup(model, hardware)
    measured = read_measurements(folder / "summary.json", model.shape)
    assert measured.input_tokens is not None and measured.output_tokens is not None
    requests = Requests(measured.input_tokens, measured.output_tokens)
    held = {"routing_skew": 0.0} if measured.routes_evenly else {}
    source = {"folder": folder.name, "arm": measured.baseline[0].curve.label, "model": manifest["model"]}
    fitted = fit(setup, requests, measured.baseline, held=held, provenance=source)
    compared = compare(setup, requests, measured, fitted)
    _plot(compared, f"{manifest['model']}, {manifest['machine']['cpu']}: fitted to the first alone", out, folder.name)
    report = _report(fitted, compared)
    if transferred is not None:
        report["errors_without_fitting"] = summarize(compare(setup, requests, measured, transferred))
    return fitted, report


def _report(fitted: Fitted, compared: list[Compared]) -> dict[str, Any]:
    return {
        "fitted": fitted.to_object(),
        "errors": summarize(compared),
        "points": [point.to_object() for point in compared],
    }


def _plot(compared: list[Compared], title: str, out: Path, name: str) -> None:
    write_comparison(compared, title, out.with_name(f"{out.stem}_{name}.png"))


if __name__ == "__main__":
    typer.run(main)
