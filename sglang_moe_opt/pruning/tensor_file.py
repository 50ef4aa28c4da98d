"""safetensors files by their bytes: where each tensor lies, and new files copied from pieces of old ones. Pure.

A file is 8 bytes of header length (little-endian), a JSON header, then the values. Nothing is decoded, so that every
dtype passes through unchanged and a copy takes one buffer of memory whatever the tensors' sizes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final

from sglang_moe_opt.progress import Advance

_BUFFER: Final = 8 << 20  # bytes copied at a time
_MAX_HEADER: Final = 100_000_000  # the format's own limit


class TensorFileError(ValueError):
    """A safetensors file that cannot be read: one line that begins with its path."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: `start` and `nbytes` in bytes of the file; dtype as the format names it (BF16, F8_E4M3)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def item_bytes(self) -> float:
        return self.nbytes / max(1, math.prod(self.shape))


@dataclass(frozen=True)
class TensorCopy:
    """A tensor to write: another's values under a name; `rows` (of the first dimension) selects, None takes all."""

    name: str
    source: StoredTensor
    rows: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape if self.rows is None else (len(self.rows), *self.source.shape[1:])

    @property
    def nbytes(self) -> int:
        return sum(length for _, length in self.pieces())

    def pieces(self) -> Iterator[tuple[int, int]]:
        """The (start, length) in bytes of what is copied, in order."""
        if self.rows is None:
            yield self.source.start, self.source.nbytes
            return
        row = self.source.nbytes // self.source.shape[0]
        yield from ((self.source.start + index * row, row) for index in self.rows)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file in the order of their values. Raises TensorFileError where it is missing or cut off."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if length <= min(size, _MAX_HEADER) else b""
    except OSError as error:
        raise TensorFileError(f"{path}: {error.strerror}") from None
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        found = {name: _stored(path, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TensorFileError(f"{path}: not a safetensors file, or cut off in its header") from None
    end = max((tensor.start + tensor.nbytes for tensor in found.values()), default=8 + length)
    if size != end:
        raise TensorFileError(f"{path}: {size} bytes where its header asks for {end}; is the file whole?")
    return dict(sorted(found.items(), key=lambda entry: entry[1].start))


def write_tensors(path: Path, tensors: Sequence[TensorCopy], advance: Advance) -> str:
    """Write a safetensors file to the disk and return the sha256 of its bytes, 64 hex digits. Raises OSError."""
    # The widest dtype first, as the format's own writer has it: then every tensor is aligned to its items.
    tensors = sorted(tensors, key=lambda tensor: -tensor.source.item_bytes)
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER))
    with ExitStack() as stack:
        out = stack.enter_context(path.open("wb"))
        head = _header(tensors)
        out.write(head)
        digest.update(head)
        opened: dict[Path, FileIO] = {}
        for tensor in tensors:
            file = tensor.source.file
            if file not in opened:
                opened[file] = stack.enter_context(file.open("rb", buffering=0))
            for start, length in tensor.pieces():
                for part in _read(opened[file], start, length, buffer):
                    out.write(part)
                    digest.update(part)
                    advance(len(part))
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _stored(path: Path, entry: dict[str, Any], offset: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    return StoredTensor(path, entry["dtype"], tuple(entry["shape"]), offset + start, end - start)


def _header(tensors: Sequence[TensorCopy]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.source.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read(file: FileIO, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
    file.seek(start)
    while length:
        count = file.readinto(buffer[: min(length, len(buffer))])
        if not count:
            raise OSError(f"{file.name!s}: ended while it was read")
        length -= count
        yield buffer[:count]
