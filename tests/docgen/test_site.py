"""The documentation as pages: built strictly, and looked at in a browser at two widths, without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from docgen.__main__ import pages
from tests.eval.browser import Page, browser, executable
from tests.serving import serving

LOOKED_AT = ("architecture", "results", "policy-reference", "commands/loadtest")

needs_mkdocs = pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs: make install")
needs_browser = pytest.mark.skipif(executable() is None, reason="no Chromium on PATH (apt-get install chromium)")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("file", pages())
def test_lists_and_tables_are_apart_from_paragraphs(file: str, project_root: Path) -> None:
    """GitHub takes a list right behind a paragraph for one, the pages do not."""
    lines = without_code((project_root / file).read_text(encoding="utf-8")).splitlines()
    for before, line in pairwise(lines):
        if re.match(r"- |\d+\. ", line) and before.strip():
            assert re.match(r"- |\d+\. |  |#|<!--", before), f"{file}: an empty line before {line!r}"
        if line.startswith("|") and before.strip():
            assert re.match(r"\||#|<!--", before), f"{file}: an empty line before {line!r}"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@needs_mkdocs
@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", LOOKED_AT)
def test_page_fits_and_needs_no_network(tab: Page, address: str, project_root: Path, name: str, width: int) -> None:
    tab.complaints.clear()
    tab.requests.clear()
    tab.open(f"{address}/{name}.html", width=width)
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith((address, "data:", "blob:"))] == []
    assert tab.ask("document.documentElement.scrollWidth") <= width
    assert tab.ask("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)") == []
    source = without_code((project_root / f"docs/{name}.md").read_text(encoding="utf-8"))
    assert tab.ask("document.querySelectorAll('article table').length") == len(
        re.findall(r"^\|[-:| ]+\|$", source, re.M)
    )
    assert tab.ask("[...document.querySelectorAll('article p')].filter(p => /^(- |\\|)/.test(p.innerText)).length") == 0
