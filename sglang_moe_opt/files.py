"""Files that are written and read whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sglang_moe_opt.fields import FieldError

MAX_JSON_BYTES: Final = 64 << 20


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, with its folders, in one step; a failed write leaves what was there before."""
    replace_atomically(path, lambda file: _write(file, content))


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file, with its folders, in one step; a failed write leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # some writers put a file in its place that only its owner can read
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def sha256_of(path: Path) -> str:
    """64 hex digits over a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a regular UTF-8 file of bounded size: a pipe would block, and a device never end.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes >> 20} MiB")
    return content.decode("utf-8")


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_json(path: Path, field: str, max_bytes: int = MAX_JSON_BYTES) -> object:
    """The content of a JSON file. Raises FieldError for `field`: unreadable, truncated, a key twice in an object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            raise FieldError(field, next(key for key in keys if keys.count(key) > 1), "every key once")
        return content

    try:
        return json.loads(read_text(path, max_bytes), object_pairs_hook=unique)
    except OSError as error:
        raise FieldError(field, error.strerror, "a readable file") from None
    except FieldError:
        raise
    except (ValueError, RecursionError) as error:  # truncated, not UTF-8, or nested without end
        raise FieldError(field, " ".join(str(error).split()), "a whole JSON file") from None
