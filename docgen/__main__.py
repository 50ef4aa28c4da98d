"""`python -m docgen` fills in README.md and docs/; with `--check` it changes nothing and names what is out of date."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from docgen import blocks, sentences
from docgen.figures import SENTENCES
from docgen.results import ROOT
from docgen.tables import TABLES
from sglang_moe_opt.files import write_atomically


def pages(root: Path = ROOT) -> list[str]:
    """Every Markdown file that is kept up to date, as a path from the root; what an evaluation wrote is left alone."""
    docs = sorted((root / "docs").rglob("*.md"))
    written = root / "docs" / "results"
    return ["README.md", *(str(path.relative_to(root)) for path in docs if written not in path.parents)]


def render(file: str, root: Path = ROOT) -> tuple[str, str]:
    """A file's text as it is, and as it should be."""
    text = (root / file).read_text(encoding="utf-8")
    return text, sentences.fill(blocks.fill(text, TABLES, file), file, SENTENCES)


def main() -> int:
    """Exit status: 0 all up to date or written, 1 out of date under --check, 2 a mark or a sentence is wrong."""
    parser = argparse.ArgumentParser(prog="python -m docgen", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is out of date")
    check = parser.parse_args().check
    stale = []
    for file in pages():
        try:
            old, new = render(file)
        except (blocks.BlockError, sentences.SentenceError) as error:
            print(f"docgen: error: {error}", file=sys.stderr)
            return 2
        if old != new:
            stale.append(file)
            if not check:
                write_atomically(ROOT / file, new)
    if stale:
        print(f"docgen: {'out of date (make tables)' if check else 'written'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
