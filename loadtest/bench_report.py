"""From the samples of a benchmark to medians, paired ratios, fractions of the roofline, a table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from loadtest.results import ratios, spread
from sglang_moe_opt.model_shape import MoEShape
from sglang_moe_opt.perfmodel.roofline import Machine, decode_step, expected_distinct_experts
from sglang_moe_opt.pyplot import pyplot

SGLANG, OURS, LLAMA = "sglang", "moe-opt", "llama.cpp"


class Phase(NamedTuple):
    """A pair of servers, ours and ``beside``, and the number of routed experts of the comparison."""

    beside: str
    na: int


@dataclass(frozen=True)
class Sample:
    """One arm at one concurrency in one round; seconds from outside.

    Attributes:
        phase: which servers stood side by side, and the number of experts they were compared under.
        na: routed experts of this sample.
        first_s, all_s: a burst of one token each, and of ``output_len`` each.
        distinct_experts: mean per layer and decode step of the long burst; None where the server does not tell.
        read_bandwidth, peak_flops: of the machine, mean of the probes around this concurrency.
    """

    phase: Phase
    server: str
    na: int
    concurrency: int
    round: int
    output_len: int
    first_s: float
    all_s: float
    distinct_experts: float | None
    read_bandwidth: float
    peak_flops: float

    @property
    def decode_tok_s(self) -> float:
        """Generated tokens per second, the first of each request left out."""
        return self.concurrency * (self.output_len - 1) / (self.all_s - self.first_s)

    @property
    def output_tok_s(self) -> float:
        """Generated tokens per second from sending to the last answer, prefill included."""
        return self.concurrency * self.output_len / self.all_s

    def roofline_tok_s(self, shape: MoEShape, input_len: int, distinct: float, *, overlap: bool = True) -> float:
        """What the machine could decode at the bandwidth and peak of this round."""
        context = input_len + self.output_len / 2
        work = decode_step(shape, tokens=self.concurrency, na=self.na, distinct_experts=distinct, context=context)
        seconds = Machine(self.read_bandwidth, self.peak_flops).seconds(work, overlap=overlap)
        return self.concurrency / seconds


def summary(samples: Sequence[Sample], shape: MoEShape, input_len: int) -> list[dict[str, Any]]:
    """One point for each number of experts, concurrency and server; ratios within the phase that measured both."""
    points = []
    for na, c, server in dict.fromkeys((s.phase.na, s.concurrency, s.server) for s in samples):
        here = [s for s in samples if (s.phase.na, s.concurrency) == (na, c)]
        mine = [s for s in here if (s.server, s.na) == (server, na)]
        beside = {s.phase for s in mine}
        ours = [s for s in here if (s.server, s.na) == (OURS, na) and s.phase in beside] or mine
        distinct = [_distinct(s, shape) for s in ours]
        roofs = [s.roofline_tok_s(shape, input_len, d) for s, d in zip(mine, distinct, strict=True)]
        apart = [s.roofline_tok_s(shape, input_len, d, overlap=False) for s, d in zip(mine, distinct, strict=True)]
        decode = [s.decode_tok_s for s in mine]
        point = {
            "na": na,
            "concurrency": c,
            "server": server,
            "decode_tok_s": spread(decode),
            "output_tok_s": spread([s.output_tok_s for s in mine]),
            "prefill_s": spread([s.first_s for s in mine]),
            "distinct_experts": spread(distinct),
            "read_bandwidth_gb_s": spread([s.read_bandwidth / 1e9 for s in mine]),
            "peak_gflop_s": spread([s.peak_flops / 1e9 for s in mine]),
            "roofline_tok_s": spread(roofs),
            "of_roofline": spread(ratios(decode, roofs)),
            "of_roofline_without_overlap": spread(ratios(decode, apart)),
            "ours_to_it_decode": spread(ratios([s.decode_tok_s for s in ours], decode)),
            "ours_to_it_output": spread(ratios([s.output_tok_s for s in ours], [s.output_tok_s for s in mine])),
        }
        if server == OURS:
            point |= _speedup(here, na, shape, input_len)
        points.append(point)
    return points


def _speedup(here: Sequence[Sample], na: int, shape: MoEShape, input_len: int) -> dict[str, Any]:
    """Against our own server under the model's number of experts, where it took its turns in the same phase."""
    base = [s for s in here if s.server == OURS and s.na != na]
    if not base:
        return {}
    fast = [s for s in here if (s.server, s.na) == (OURS, na) and s.phase in {b.phase for b in base}]
    measured = ratios([s.decode_tok_s for s in fast], [s.decode_tok_s for s in base])
    roofs = [[s.roofline_tok_s(shape, input_len, _distinct(s, shape)) for s in arm] for arm in (fast, base)]
    return {
        "speedup_over_na": base[0].na,
        "speedup": spread(measured),
        "speedup_of_roofline": spread(ratios(measured, ratios(*roofs))),
    }


def _distinct(sample: Sample, shape: MoEShape) -> float:
    expected = expected_distinct_experts(shape.num_experts, sample.na, sample.concurrency)
    return expected if sample.distinct_experts is None else sample.distinct_experts


def show(result: dict[str, Any], console: Console) -> None:
    """Print the table."""
    table = Table(
        "na", "c", "server", "decode tok/s", "output tok/s", "of roofline", "ours / it (quartiles)", "experts"
    )
    for p in _sorted(result):
        ratio = p["ours_to_it_decode"]
        low, high = ratio["quartiles"]
        table.add_row(
            str(p["na"]),
            str(p["concurrency"]),
            p["server"],
            f"{p['decode_tok_s']['median']:.1f}",
            f"{p['output_tok_s']['median']:.1f}",
            f"{p['of_roofline']['median']:.0%}",
            "" if p["server"] == OURS else f"{ratio['median']:.2f} ({low:.2f}-{high:.2f})",
            f"{p['distinct_experts']['median']:.1f}",
        )
    console.print(table)
    for p in result["summary"]:
        if "speedup" in p:
            console.print(
                f"c={p['concurrency']}: na={p['na']} is {p['speedup']['median']:.2f} times na={p['speedup_over_na']}, "
                f"{p['speedup_of_roofline']['median']:.0%} of what the roofline allows"
            )
    for load in result["loads"]:
        console.print(
            f"{load['server']} na={load['na']}: up in {load['load_s']:.1f} s, {load['memory_bytes'] / 1e9:.2f} GB"
        )


def write_markdown(result: dict[str, Any], path: Path) -> None:
    """The table as Markdown: medians, with quartiles where they matter."""
    lines = [
        f"# {result['model']}",
        "",
        f"`{result['command']}`, {result['machine']['cores']} cores of {result['machine']['cpu']}, {result['time']}",
        "",
        "| na | c | server | decode tok/s | output tok/s | of the roofline | ours / it, decode | ours / it, output |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in _sorted(result):
        ours = p["server"] == OURS
        cells = [
            *(str(p[key]) for key in ("na", "concurrency", "server")),
            f"{p['decode_tok_s']['median']:.0f}",
            f"{p['output_tok_s']['median']:.0f}",
            _quartiles(p["of_roofline"]),
            "" if ours else _quartiles(p["ours_to_it_decode"]),
            "" if ours else _quartiles(p["ours_to_it_output"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    path.write_text("\n".join(lines) + "\n")


def _sorted(result: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(result["summary"], key=lambda p: (-p["na"], p["concurrency"]))


def _quartiles(values: dict[str, Any]) -> str:
    low, high = values["quartiles"]
    return f"{values['median']:.2f} ({low:.2f}-{high:.2f})"


def write_plot(result: dict[str, Any], path: Path) -> None:
    """Decode tok/s against concurrency, a panel for each number of experts, with the roofline."""
    plt = pyplot()
    counts = list(dict.fromkeys(p["na"] for p in result["summary"]))
    figure, panels = plt.subplots(1, len(counts), figsize=(5 * len(counts), 4), sharey=True, squeeze=False)
    for panel, na in zip(panels[0], counts, strict=True):
        for server in (SGLANG, LLAMA, OURS):
            points = [p for p in result["summary"] if p["na"] == na and p["server"] == server]
            if not points:
                continue
            levels = [p["concurrency"] for p in points]
            medians = [p["decode_tok_s"]["median"] for p in points]
            low = [m - p["decode_tok_s"]["quartiles"][0] for m, p in zip(medians, points, strict=True)]
            high = [p["decode_tok_s"]["quartiles"][1] - m for m, p in zip(medians, points, strict=True)]
            panel.errorbar(levels, medians, yerr=[low, high], marker="o", capsize=3, label=server)
            if server == OURS:
                roof = [p["roofline_tok_s"]["median"] for p in points]
                panel.plot(levels, roof, "k--", linewidth=1, label="roofline")
        panel.set(xscale="log", yscale="log", title=f"{na} routed experts", xlabel="requests at a time")
        panel.set_xticks(levels, [str(level) for level in levels])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("decode tok/s")
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
