"""`moe-opt patch`: apply, revert and check the patches to SGLang."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sglang_moe_opt.patches import SourceTree

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
TreeOption = Annotated[Path | None, typer.Option("--tree", help="A site-packages folder (default: this Python's own).")]
FolderOption = Annotated[Path | None, typer.Option("--patches", help="A folder with another series.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Apply, revert or check the patches to SGLang.", no_args_is_help=True)
    for command in (apply, revert, status, record):
        group.command()(command)
    app.add_typer(group, name="patch")


def apply(tree: TreeOption = None, patches: FolderOption = None, as_json: JsonOption = False) -> None:
    """Apply the series; does nothing where it is applied already."""
    _change("apply", tree, patches, as_json)


def revert(tree: TreeOption = None, patches: FolderOption = None, as_json: JsonOption = False) -> None:
    """Restore SGLang's original files."""
    _change("revert", tree, patches, as_json)


def status(tree: TreeOption = None, patches: FolderOption = None, as_json: JsonOption = False) -> None:
    """Say what is applied; exit code 1 unless SGLang is as this package needs it."""
    from sglang_moe_opt.patches import PACKAGED, PatchSet

    state = PatchSet.load(patches or PACKAGED).status(_tree(tree))
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "state": state.state,
                    "ready": state.ready,
                    "sglang": state.tree.version,
                    "expected_sglang": state.expected_version,
                    "root": str(state.tree.root),
                    "patches": list(state.patches),
                    "files": dict(state.files),
                }
            )
        )
    else:
        fits = "" if state.version_fits else f" (the patches are for {state.expected_version})"
        summary = "no patch needed" if state.state == "none" else f"patches: {state.state}"
        typer.echo(f"sglang {state.tree.version}{fits} in {state.tree.root}: {summary}")
        for path, file_state in state.files.items():
            typer.echo(f"  {file_state:<10} {path}")
    if not state.ready:
        raise typer.Exit(1)


def record(tree: TreeOption = None, patches: FolderOption = None, as_json: JsonOption = False) -> None:
    """For maintainers: write the series' checksums against an unpatched SGLang."""
    from sglang_moe_opt.patches import PACKAGED, PatchSet

    manifest = PatchSet.load_unrecorded(patches or PACKAGED).record(_tree(tree))
    if as_json:
        typer.echo(manifest.model_dump_json())
    else:
        typer.echo(f"recorded {len(manifest.files)} file(s) of sglang {manifest.sglang}")


def _change(action: str, tree: Path | None, patches: Path | None, as_json: bool) -> None:
    from sglang_moe_opt.patches import PACKAGED, PatchSet

    patch_set = PatchSet.load(patches or PACKAGED)
    source = _tree(tree)
    changed = patch_set.apply(source) if action == "apply" else patch_set.revert(source)
    state = patch_set.status(source).state
    if as_json:
        typer.echo(json.dumps({"action": action, "changed": changed, "state": state, "sglang": source.version}))
    elif state == "none":
        typer.echo(f"sglang {source.version} needs no patch: nothing to {action}")
    else:
        typer.echo(f"sglang {source.version}: {len(changed)} file(s) changed, patches {state}")


def _tree(folder: Path | None) -> SourceTree:
    from sglang_moe_opt.patches import SourceTree

    return SourceTree.installed() if folder is None else SourceTree.at(folder)
