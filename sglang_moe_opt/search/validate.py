"""How well schedules are predicted and chosen from half of a file's measurements, over random halves.

python -m sglang_moe_opt.search.validate CSV --layers 26 --top-k 6 --splits 20 --out FILE.json
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from sglang_moe_opt import __version__
from sglang_moe_opt.files import sha256_of, write_atomically
from sglang_moe_opt.progress import step_progress
from sglang_moe_opt.search.measurements import Measurements, PlainShape
from sglang_moe_opt.search.proposals import bhep_grid, climb, within
from sglang_moe_opt.search.rivals import surrogates
from sglang_moe_opt.search.surrogate import LEVEL, Fitted, Surrogate, Tables, Values


@dataclass(frozen=True)
class Split:
    """One random half predicted from the other.

    Attributes:
        mean_absolute_error: of the half that was not fitted.
        unseen_error: the same for those of its rows whose table the fitted half does not repeat.
        coverage: share of the half inside its intervals.
        half_width: half the width of an interval on average.
        regret: what the chosen schedule's measured score lacks to the best one within the budget, chosen by predicted
            score among all measured schedules.
        regret_by_score: the same, chosen by measured score among the fitted rows: what one has without a surrogate.
    """

    mean_absolute_error: float
    unseen_error: float
    coverage: float
    half_width: float
    regret: float
    regret_by_score: float


def split_once(data: Measurements, surrogate: Surrogate, budget: float, seed: int) -> tuple[Split, Fitted]:
    """Fit a random half, predict the other one, choose within the budget."""
    fitted_rows, other = halves(len(data), seed)
    half, rest = data.subset(fitted_rows), data.subset(other)
    fitted = surrogate.fit(half.tables, half.scores)
    found = fitted.predict(rest.tables)
    errors = np.abs(found.mean - rest.scores)
    unseen = ~np.isin(data.groups[other], data.groups[fitted_rows])
    best = (data.sign * data.scores[within(data.mean_na, budget)]).max()

    def regret(chosen: NDArray[np.int64]) -> float:
        return float(best - data.sign * data.repeats(chosen).mean())

    return Split(
        mean_absolute_error=float(errors.mean()),
        unseen_error=float(errors[unseen].mean()),
        coverage=float(((found.low <= rest.scores) & (rest.scores <= found.high)).mean()),
        half_width=float((found.high - found.low).mean() / 2),
        regret=regret(_choice(data.tables, data.sign * fitted.mean(data.tables), budget)),
        regret_by_score=regret(_choice(half.tables, half.sign * half.scores, budget)),
    ), fitted


def halves(rows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of a random half, and of the other one."""
    order = np.random.default_rng(seed).permutation(rows)
    return order[: rows // 2], order[rows // 2 :]


def validate(
    data: Measurements,
    budget: float,
    splits: int,
    report: Callable[[str], None] = lambda line: None,
    first_seed: int = 0,
) -> dict[str, Any]:
    """All surrogates on the same splits, and the unrestricted proposals of the default one; JSON-ready."""
    candidates = surrogates(data.tables.shape[1], data.shape.top_k)
    rows: list[dict[str, Any]] = []
    fits: list[Fitted] = []
    for surrogate in candidates:
        found = []
        for seed in range(first_seed, first_seed + splits):
            split, fitted = split_once(data, surrogate, budget, seed)
            found.append(split)
            if surrogate is candidates[0]:
                fits.append(fitted)
            report(f"{surrogate.name}, split {seed}: error {split.mean_absolute_error:.3f}, regret {split.regret:.2f}")
        rows.append({"surrogate": surrogate.name, **_summary(found)})
    judge = candidates[0].fit(data.tables, data.scores)
    return {
        "column": data.column,
        "rows": len(data),
        "distinct_schedules": int(data.groups.max()) + 1,
        "repeat_deviation": data.repeat_deviation,
        "interval_level": LEVEL,
        "mean_na_budget": budget,
        "splits": splits,
        "first_seed": first_seed,
        "surrogates": rows,
        "unrestricted": _unrestricted(data, fits, judge, budget),
    }


def _summary(found: list[Split]) -> dict[str, Any]:
    columns = {name: np.array([getattr(split, name) for split in found]) for name in Split.__dataclass_fields__}
    summary: dict[str, Any] = {
        name: {"mean": round(float(values.mean()), 4), "max": round(float(values.max()), 4)}
        for name, values in columns.items()
    }
    summary["coverage"] = {
        "mean": round(float(columns["coverage"].mean()), 4),
        "min": round(float(columns["coverage"].min()), 4),
    }
    summary["by_split"] = {name: [round(float(value), 4) for value in values] for name, values in columns.items()}
    return summary


def _unrestricted(data: Measurements, fits: list[Fitted], judge: Fitted, budget: float) -> dict[str, Any]:
    """What each half proposes among schedules that nobody measured, judged by the surrogate fitted to all rows."""
    lowest, highest = int(data.tables.min()), int(data.tables.max())
    _, grid = bhep_grid(data.shape, lowest, highest)
    kinds: dict[str, list[NDArray[np.int64]]] = {"best_schedule": [], "best_layers": []}
    for fitted in fits:
        chosen = _choice(grid, data.sign * fitted.mean(grid), budget)
        kinds["best_schedule"].append(chosen)
        kinds["best_layers"].append(climb(fitted, chosen, budget, lowest, highest, data.sign))
    inside = data.tables[within(data.mean_na, budget)]
    best = float((data.sign * judge.mean(inside)).max() * data.sign)
    result: dict[str, Any] = {
        "judged_by": "the default surrogate fitted to all rows: a prediction, not a measurement",
        "best_of_measured_schedules": round(best, 4),
    }
    for kind, tables in kinds.items():
        values = judge.mean(np.array(tables))
        result[kind] = {
            "score": {
                name: round(float(of(values)), 4) for name, of in (("mean", np.mean), ("min", np.min), ("max", np.max))
            },
            "layers": ["-".join(map(str, table.tolist())) for table in tables],
        }
    return result


def _choice(tables: Tables, values: Values, budget: float) -> NDArray[np.int64]:
    inside = within(tables.mean(1), budget)
    return np.asarray(tables[inside][values[inside].argmax()])


def main(
    csv: Annotated[Path, typer.Argument(help="Measured schedules and scores.")],
    layers: Annotated[int, typer.Option(help="MoE layers of the model.")],
    top_k: Annotated[int, typer.Option(help="Routed experts per token of the model.")],
    column: Annotated[str | None, typer.Option(help="The score.")] = None,
    mean_na: Annotated[float, typer.Option(help="Budget of the choice.")] = 4.0,
    splits: Annotated[int, typer.Option(min=1, help="Random halves.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the first half; the others follow.")] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Predict random halves of a CSV from the other halves, with every surrogate."""
    try:
        data = Measurements.load(csv, PlainShape(layers, top_k), column)
        with step_progress("splits", splits * len(surrogates(layers, top_k)), shown=True) as bar:
            result = validate(data, mean_na, splits, bar.advance, seed)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    command = f"python -m sglang_moe_opt.search.validate {csv.name} --layers {layers} --top-k {top_k}"
    command += f" --mean-na {mean_na:g} --splits {splits} --seed {seed}" + (f" --column {column}" if column else "")
    head = {
        "command": command,
        "versions": {"sglang-moe-opt": __version__, "numpy": np.__version__},
        "measurements": {"file": csv.name, "sha256": sha256_of(csv)},
    }
    text = json.dumps({**head, **result}, indent=1) + "\n"
    if out is None:
        typer.echo(text)
    else:
        write_atomically(out, text)
        typer.echo(f"written to {out}")


if __name__ == "__main__":
    typer.run(main)
