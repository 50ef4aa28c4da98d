"""Write a checkpoint with a model's real layer shapes, few layers and random weights, once, into a cache folder.

Weights are normal with std 0.02 and norms are 1, so that routing is even; SGLang's `--load-format dummy` sends every
token to the same experts and makes any speed figure at more than one request wrong.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from sglang_moe_opt.progress import Advance, byte_progress
from sglang_moe_opt.shapes import ShapeSpec, TensorSpec, checkpoint_shards

MANIFEST: Final = "shape_manifest.json"
FORMAT: Final = 1  # raise it when the same spec and seed would give other weights
STD: Final = 0.02
DTYPES: Final = {"bfloat16": ("BF16", 2), "float16": ("F16", 2), "float32": ("F32", 4)}
_CHUNK: Final = 1 << 22  # elements drawn at a time: 16 MB of fp32 bounds the memory of a writer
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def cache_root() -> Path:
    """$SGLANG_MOE_OPT_CACHE/shapes, or the same below ~/.cache/sglang-moe-opt."""
    base = os.environ.get("SGLANG_MOE_OPT_CACHE") or "~/.cache/sglang-moe-opt"
    return Path(base).expanduser() / "shapes"


def ensure_shape(
    spec: str,
    out: str | Path | None = None,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    tokenizer: str | Path | None = None,
    progress: bool = False,
) -> Path:
    """The folder of this shape's checkpoint, written first unless it is there; `out` defaults to the cache.

    `tokenizer` is a local folder whose tokenizer files are copied in. Raises ValueError on a bad argument, on an `out`
    that holds something else, and when the disk is too full.
    """
    shape = ShapeSpec.parse(spec)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype[:80]!r}, allowed: {', '.join(DTYPES)}")
    recipe = _Recipe(shape, dtype, seed, None if tokenizer is None else Path(tokenizer))
    folder = cache_root() / recipe.folder_name if out is None else Path(out).expanduser()
    if recipe.is_written(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if recipe.is_written(folder):  # by the process that held the lock
            return folder
        if out is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"out: {folder} holds something else, allowed: a new or empty folder")
        _write(recipe, folder, progress)
    return folder


@dataclass(frozen=True)
class _Recipe:
    """All that decides a checkpoint's content."""

    shape: ShapeSpec
    dtype: str
    seed: int
    tokenizer: Path | None

    @property
    def folder_name(self) -> str:
        name = f"{self.shape.name}-{self.shape.num_layers}l-{self.dtype}-seed{self.seed}"
        return name if self.tokenizer is None else f"{name}-tok{self.identity()['tokenizer'][:8]}"

    def config(self) -> dict[str, Any]:
        """config.json, with the tokenizer's special ids. Raises ValueError if its ids exceed the vocabulary."""
        config = self.shape.config(self.dtype)
        if self.tokenizer is not None:
            size = _vocab_size(self.tokenizer)
            if size > config["vocab_size"]:
                raise ValueError(
                    f"tokenizer: {self.tokenizer} has {size} ids, allowed: up to {config['vocab_size']} ({self.shape})"
                )
            config |= _special_ids(self.tokenizer)
        return config

    def identity(self) -> dict[str, Any]:
        """What the manifest must say for a folder to be this checkpoint."""
        digest = hashlib.sha256()
        for file in _tokenizer_files(self.tokenizer):
            digest.update(file.name.encode() + file.read_bytes())
        return {
            "format": FORMAT,
            "spec": str(self.shape),
            "dtype": self.dtype,
            "seed": self.seed,
            "tokenizer": None if self.tokenizer is None else digest.hexdigest()[:16],
            "config": hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()[:16],
        }

    def is_written(self, folder: Path) -> bool:
        """Whether the folder's manifest is this recipe's and every file has the size it had when written."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
            return bool(manifest["recipe"] == self.identity() and manifest["files"] == sizes)
        except (OSError, KeyError, TypeError, json.JSONDecodeError):
            return False


def _write(recipe: _Recipe, folder: Path, progress: bool) -> None:
    """Fill a temporary folder beside `folder` and rename it, so that nobody ever sees half a checkpoint."""
    config, identity = recipe.config(), recipe.identity()
    shards = checkpoint_shards(config)
    needed = sum(_nbytes(tensor, recipe.dtype) for shard in shards for tensor in shard)
    free = shutil.disk_usage(folder.parent).free
    if needed > 0.95 * free:
        raise ValueError(f"disk: {recipe.shape} takes {needed / 1e9:.1f} GB, {folder.parent} has {free / 1e9:.1f} GB")
    staging = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)  # of a writer that died: we hold the lock
    staging.mkdir()
    try:
        with byte_progress(f"{recipe.shape} {needed / 1e9:.2f} GB", needed, progress) as advance:
            _write_shards(staging, shards, recipe, advance)
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for file in _tokenizer_files(recipe.tokenizer):
            shutil.copyfile(file, staging / file.name)
        files = {file.name: file.stat().st_size for file in sorted(staging.iterdir())}
        (staging / MANIFEST).write_text(json.dumps({"recipe": identity, "files": files}, indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)  # empty, or a damaged entry of our own cache
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_shards(folder: Path, shards: list[list[TensorSpec]], recipe: _Recipe, advance: Advance) -> None:
    names = [f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" for index in range(len(shards))]
    workers = min(len(shards), os.cpu_count() or 1, 8)
    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(_write_shard, folder / name, shard, recipe, advance)
            for name, shard in zip(names, shards, strict=True)
        ]
        try:
            for job in jobs:
                job.result()
        except BaseException:  # a full disk or Ctrl-C: do not write the rest first
            pool.shutdown(cancel_futures=True)
            raise
    index = {
        "metadata": {"total_size": sum(_nbytes(tensor, recipe.dtype) for shard in shards for tensor in shard)},
        "weight_map": {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_shard(path: Path, tensors: list[TensorSpec], recipe: _Recipe, advance: Advance) -> None:
    """One safetensors file, streamed: 8 bytes of header length, a JSON header, then the values in its order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + _nbytes(tensor, recipe.dtype)
        dtype = _dtype(tensor, recipe.dtype)
        header[tensor.name] = {
            "dtype": DTYPES[dtype][0],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for values aligned to 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            _write_values(file, tensor, recipe, advance)


def _write_values(file: BinaryIO, tensor: TensorSpec, recipe: _Recipe, advance: Advance) -> None:
    """Values depend on seed and tensor name alone: a longer model begins with a shorter one's layers."""
    import torch

    dtype = getattr(torch, _dtype(tensor, recipe.dtype))
    seed = hashlib.sha256(f"{recipe.seed}:{tensor.name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little") >> 1)
    count = math.prod(tensor.shape)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        # drawn in fp32: torch's bf16 normal is made from 8-bit uniforms
        values = torch.ones(size) if tensor.kind == "ones" else torch.randn(size, generator=generator) * STD
        data = values.to(dtype).view(torch.uint8).numpy()
        file.write(data.data)
        advance(data.nbytes)


def _dtype(tensor: TensorSpec, dtype: str) -> str:
    return "float32" if tensor.kind == "bias" else dtype  # as DeepSeek-V3 stores its correction bias


def _nbytes(tensor: TensorSpec, dtype: str) -> int:
    return math.prod(tensor.shape) * DTYPES[_dtype(tensor, dtype)][1]


def _tokenizer_files(folder: Path | None) -> list[Path]:
    return [] if folder is None else [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]


def _vocab_size(folder: Path) -> int:
    """Ids that the folder's tokenizer can give: from tokenizer.json, else from its config.json. Raises ValueError."""
    try:
        if (folder / "tokenizer.json").is_file():
            content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            vocab = content["model"]["vocab"]
            ids: list[int] = list(vocab.values()) if isinstance(vocab, dict) else [len(vocab) - 1]
            return 1 + max([*ids, *(int(token["id"]) for token in content.get("added_tokens", []))])
        if (folder / "tokenizer.model").is_file():
            return int(json.loads((folder / "config.json").read_text())["vocab_size"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"tokenizer: {folder} is unreadable ({type(error).__name__}: {error})") from None
    raise ValueError(f"tokenizer: {folder} has no tokenizer.json, and no tokenizer.model")


def _special_ids(folder: Path) -> dict[str, Any]:
    """bos and eos ids of the config.json beside the tokenizer, where there is one."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return {key: config[key] for key in ("bos_token_id", "eos_token_id") if config.get(key) is not None}


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One writer of a folder at a time, across processes; released by the system if the writer dies."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
