"""The fingerprint of a model."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sglang_moe_opt.checkpoint_id import fingerprint

CONFIG = {"model_type": "deepseek_v2", "hidden_size": 8}


def test_without_weights_it_is_the_configs_own() -> None:
    text = '{"hidden_size": 8, "model_type": "deepseek_v2"}'
    assert fingerprint(CONFIG, None) == hashlib.sha256(text.encode()).hexdigest()[:32]
    assert fingerprint(dict(reversed(CONFIG.items())), None) == fingerprint(CONFIG, None)


def test_names_and_bytes_of_the_weights_count(tmp_path: Path) -> None:
    seen = {fingerprint(CONFIG, tmp_path)}
    assert seen == {fingerprint(CONFIG, None)}
    for name, content in (("model.safetensors", b"a"), ("model.safetensors", b"b"), ("other.safetensors", b"b")):
        (tmp_path / name).write_bytes(content)
        seen.add(fingerprint(CONFIG, tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    seen.add(fingerprint(CONFIG, tmp_path))
    assert len(seen) == 4
