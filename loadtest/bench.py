"""`make bench`: SGLang without our CPU path, with it, llama.cpp, and what the machine could do, measured in turns.

    python -m loadtest.bench --out docs/results/bench

Two servers on the same weights stand side by side, ours and another (all of them would not fit in memory), and answer
the same prompts in turns. The machine is probed before and after each; ratios are formed round by round. Decode tok/s
is from outside, alike for every server: c x (L - 1) tokens over the time of a burst of L tokens each, less that of a
burst of one token each.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import Progress

from loadtest import llama_cpp
from loadtest.bench_report import LLAMA, OURS, SGLANG, Phase, Sample, show, summary, write_markdown, write_plot
from loadtest.burst import flush_cache, generate, random_prompts
from loadtest.gguf_export import ensure_gguf
from loadtest.options import numbers
from loadtest.probe import Probe
from loadtest.results import provenance, write_json
from loadtest.servers import Running, running, server
from sglang_moe_opt.cli.serve import has_accelerator, resolve_model
from sglang_moe_opt.exposition import total
from sglang_moe_opt.model_shape import MoEShape

FIRST_PORT = 30860
FLAGS = ("--dtype", "bfloat16", "--max-total-tokens", "16384", "--context-length", "4096", "--log-level", "warning")
UPSTREAM_ENV = {
    "SGLANG_MOE_OPT_CPU_KERNELS": "0",
    "SGLANG_EAGER_INPUT_NO_COPY": "0",
    "GLIBC_TUNABLES": "",
    "PYTHONMALLOC": "default",
}
"""What undoes our environment for a server as it would be started without us."""


@dataclass(frozen=True)
class Arm:
    """A server and the number of routed experts that it runs with."""

    server: str
    na: int


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results: bench.json, bench.md, bench.png.")],
    model: Annotated[str, typer.Option(help="Folder or shape:NAME@LAYERS.")] = "shape:deepseek-v2-lite@5",
    na: Annotated[str, typer.Option(help="Routed experts, comma-separated; the first is the model's own.")] = "6,2",
    concurrency: Annotated[str, typer.Option(help="Requests at a time, comma-separated.")] = "1,4,16,64",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds after the warm-up.")] = 5,
    input_len: Annotated[int, typer.Option(min=1, help="Prompt tokens.")] = 32,
    output_len: Annotated[int, typer.Option(min=2, help="Generated tokens.")] = 64,
) -> None:
    """Compare servers and the roofline at every concurrency and number of experts; needs an idle machine."""
    console = Console(stderr=True)
    if has_accelerator():
        raise typer.BadParameter("this compares engines on a plain CPU, and this machine has an accelerator")
    folder = Path(resolve_model(model))
    shape = MoEShape.from_path(folder)
    levels = numbers("--concurrency", concurrency, 1024)
    counts = numbers("--na", na, shape.top_k)
    binary = llama_cpp.find()
    if binary is None:
        console.print("llama.cpp is not installed and is left out: make bench LLAMA=1 builds it")
    peers = [SGLANG, LLAMA] if binary else [SGLANG]
    samples: list[Sample] = []
    loads: list[dict[str, Any]] = []
    bench = _Bench(shape, levels, rounds, input_len, output_len, Probe())
    with httpx.Client(timeout=60) as client, Progress(console=console) as progress:
        for phase in [Phase(beside, count) for count in counts for beside in peers]:
            arms = [Arm(phase.beside, phase.na), Arm(OURS, phase.na)]
            if phase.na != counts[0] and phase.beside == SGLANG:
                arms.append(Arm(OURS, counts[0]))  # so that the speed-up is paired, too
            with ExitStack() as stack:
                what = f"na={phase.na} beside {phase.beside}: starting"
                task = progress.add_task(what, total=(rounds + 1) * len(levels) * len(arms))
                servers = _start(stack, folder, phase, max(levels), input_len + output_len, binary)
                for turn in range(rounds + 1):
                    taken = bench.round(client, servers, phase, arms, turn, progress, task)
                    samples += taken if turn else []
                    result = {
                        **provenance("loadtest.bench"),
                        "model": model,
                        "input_len": input_len,
                        "loads": [*loads, *_loads(servers, phase)],
                        "summary": summary(samples, shape, input_len),
                        "samples": [{**asdict(sample), "phase": sample.phase._asdict()} for sample in samples],
                    }
                    write_json(out / "bench.json", result)
                loads = result["loads"]
    write_markdown(result, out / "bench.md")
    write_plot(result, out / "bench.png")
    show(result, Console())


@dataclass(frozen=True)
class _Bench:
    shape: MoEShape
    levels: list[int]
    rounds: int
    input_len: int
    output_len: int
    probe: Probe

    def round(
        self,
        client: httpx.Client,
        servers: dict[str, Running],
        phase: Phase,
        arms: list[Arm],
        turn: int,
        progress: Progress,
        task: Any,
    ) -> list[Sample]:
        """Every arm at every concurrency once; odd rounds in the other order. Round 0 warms up with short answers."""
        samples = []
        for c in self.levels:
            prompts = random_prompts(c, self.input_len, self.shape.vocab_size, seed=1000 * turn + c)
            for arm in arms if turn % 2 else reversed(arms):
                samples.append(self._sample(client, servers[arm.server].url, phase, arm, prompts, turn))
                what = f"round {turn}/{self.rounds}, c={c}, {arm.server} na={arm.na}"
                progress.update(task, advance=1, description=what)
        return samples

    def _sample(
        self, client: httpx.Client, url: str, phase: Phase, arm: Arm, prompts: list[list[int]], turn: int
    ) -> Sample:
        length = self.output_len if turn else 4
        first, _ = self._burst(client, url, arm, prompts, 1)
        before = self.probe.machine()
        whole, distinct = self._burst(client, url, arm, prompts, length)
        after = self.probe.machine()
        return Sample(
            phase=phase,
            server=arm.server,
            na=arm.na,
            concurrency=len(prompts),
            round=turn,
            output_len=length,
            first_s=first,
            all_s=whole,
            distinct_experts=distinct,
            read_bandwidth=(before.read_bandwidth + after.read_bandwidth) / 2,
            peak_flops=(before.peak_flops + after.peak_flops) / 2,
        )

    def _burst(
        self, client: httpx.Client, url: str, arm: Arm, prompts: list[list[int]], length: int
    ) -> tuple[float, float | None]:
        """Seconds, and the mean number of distinct experts of its decode steps where the server counts them."""
        hint = {"na": arm.na} if arm.server == OURS and arm.na != self.shape.top_k else None
        counted = _distinct_experts(client, url) if arm.server == OURS else None
        if arm.server != LLAMA:
            flush_cache(client, url)
        start = time.perf_counter()
        if arm.server == LLAMA:
            generated = llama_cpp.generate(client, url, prompts, length)
        else:
            answers = generate(client, url, prompts, length, hint)
            generated = sum(answer["meta_info"]["completion_tokens"] for answer in answers)
        seconds = time.perf_counter() - start
        if generated != len(prompts) * length:
            raise RuntimeError(f"{arm.server} generated {generated} tokens, {len(prompts) * length} were asked for")
        if counted is None:
            return seconds, None
        total, number = (now - then for now, then in zip(_distinct_experts(client, url), counted, strict=True))
        return seconds, total / number if number else None


def _distinct_experts(client: httpx.Client, url: str) -> tuple[float, float]:
    """Sum and number of the decode steps' counts so far."""
    text = client.get(url + "/metrics").raise_for_status().text
    of, number = (total(text, f"sglang_moe_opt_unique_experts_{kind}", phase="decode") for kind in ("sum", "count"))
    return of or 0.0, number or 0.0


def _start(
    stack: ExitStack, folder: Path, phase: Phase, slots: int, context: int, binary: Path | None
) -> dict[str, Running]:
    """Ours and the other, one after the other: loading two models at once would need more memory than they keep."""
    ours = server(str(folder), on_cpu=True, policy="builtin", port=FIRST_PORT, extra=FLAGS)
    if phase.beside == SGLANG:
        extra = [*FLAGS, "--json-model-override-args", json.dumps({"num_experts_per_tok": phase.na})]
        other = server(str(folder), on_cpu=True, policy=None, port=FIRST_PORT + 1, extra=extra, env=UPSTREAM_ENV)
    else:
        assert binary is not None
        argv = llama_cpp.command(
            binary, ensure_gguf(folder), port=FIRST_PORT + 1, slots=slots, context=context + 16, na=phase.na
        )
        other = running(argv, port=FIRST_PORT + 1)
    return {name: stack.enter_context(one) for name, one in ((OURS, ours), (phase.beside, other))}


def _loads(servers: dict[str, Running], phase: Phase) -> list[dict[str, Any]]:
    return [
        {"server": name, **phase._asdict(), "load_s": round(one.load_s, 2), "memory_bytes": one.memory()}
        for name, one in servers.items()
    ]


if __name__ == "__main__":
    typer.run(main)
