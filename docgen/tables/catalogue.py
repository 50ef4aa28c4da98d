"""Every committed result file: what made it, when and on what."""

from __future__ import annotations

import shlex
from typing import Any

from docgen.results import RESULTS, load, table


def catalogue() -> str:
    """One line for each folder with a manifest and each JSON file."""
    folders = sorted(path.parent for path in RESULTS.glob("*/manifest.json"))
    files = sorted(path for path in RESULTS.glob("*.json"))
    rows = [_row(folder.name, f"{folder.name}/summary.json", f"{folder.name}/manifest.json") for folder in folders]
    rows.append(_row("bench", "bench/bench.json", "bench/bench.json"))
    rows += [_row(file.stem, file.name, file.name) for file in files]
    return table(["result", "when", "machine", "SGLang", "made by"], rows)


def _row(name: str, shown: str, source: str) -> list[str]:
    about: Any = load(source)
    about = about if isinstance(about, dict) else {}
    when = str(about.get("created") or about.get("time") or "")[:10]
    machine = about.get("machine", {})
    cores = f"{machine['cores']} cores of {machine['cpu']}" if machine else ""
    command = about.get("command", "")
    command = command if isinstance(command, str) else shlex.join(command)
    made_by = f"`{_short(command)}`" if command else ""
    return [f"[{name}](results/{shown})", when, cores, about.get("versions", {}).get("sglang", ""), made_by]


def _short(command: str) -> str:
    clean = " ".join(command.replace("|", "\\|").split())
    return clean if len(clean) <= 120 else clean[:117] + "..."


TABLES = {"catalogue": catalogue}
