"""The soak: what was sent and answered, and memory of the server's processes."""

from __future__ import annotations

from docgen.blocks import Table
from docgen.results import load, table

RUN = "soak.json"


def traffic() -> str:
    """Requests by kind, and what became of them."""
    run = load(RUN)
    rows = [[kind, f"{number:,}"] for kind, number in sorted(run["requests"].items(), key=lambda one: -one[1])]
    rows.append(["**all**", f"**{sum(run['requests'].values()):,}**"])
    rows.append(["whole answers", f"{run['finished']:,}"])
    rows.append(["answers compared with known ones", f"{run['answers_compared']:,}"])
    rows += [[f"refused as meant, {status}", f"{number:,}"] for status, number in sorted(run["refused"].items())]
    rows.append(["policy reloads, refused reloads", f"{run['operator']['reloaded']}, {run['operator']['refused']}"])
    agreed = sum(check["ok"] for check in run["metrics"])
    rows.append(["metrics that agree with the client's books", f"{agreed} of {len(run['metrics'])}"])
    rows.append(["errors", str(run["num_errors"])])
    return table(["", "number"], rows)


def memory() -> str:
    """Growth of every process of the server."""
    rows = []
    for one in load(RUN)["memory"]:
        ends = f"{one['rss_mib'][0]:,.0f}, {one['rss_mib'][-1]:,.0f}"
        name = one["process"].removeprefix("sglang_moe_opt.cli.").removeprefix("multiprocessing.")
        rows.append([name, ends, f"{one['slope']:+.1f} ({one['low']:+.1f} to {one['high']:+.1f})", one["outcome"]])
    return table(["process", "first, last, MiB", "growth after the warm-up, MiB/h", ""], rows)


TABLES: dict[str, Table] = {"soak_traffic": traffic, "soak_memory": memory}
