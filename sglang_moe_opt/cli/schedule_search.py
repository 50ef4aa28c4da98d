"""`moe-opt schedule search`: the best schedule under a budget, from a model or from measurements that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sglang_moe_opt.cli.corpus import CORPUS_HELP
from sglang_moe_opt.cli.eval import DATA_ENV
from sglang_moe_opt.fields import FieldError

BUDGET, MEASURED = "Budget (one of these)", "With --from-measurements"
WRITTEN, SIZE = "What is written", "How much is measured"


def search(
    model: Annotated[
        str | None, typer.Option(help="Folder, Hugging Face id, shape:NAME@LAYERS, mini-v2 or mini-v3.")
    ] = None,
    corpus: Annotated[str | None, typer.Option(help=CORPUS_HELP)] = None,
    data_dir: Annotated[
        Path | None, typer.Option(envvar=DATA_ENV, help="Raw data, for --corpus reference and heldout.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A running server of --model. Without it one is started, and stopped.")
    ] = None,
    mean_na: Annotated[
        float | None, typer.Option(help="Routed experts a layer, on average.", rich_help_panel=BUDGET)
    ] = None,
    bytes_per_token: Annotated[
        str | None,
        typer.Option(help="Bytes of routed experts' weights for one token: 12.5M, 2G.", rich_help_panel=BUDGET),
    ] = None,
    tok_s: Annotated[
        float | None,
        typer.Option(help="Generated tokens a second, predicted for --concurrency.", rich_help_panel=BUDGET),
    ] = None,
    max_loss: Annotated[
        str | None,
        typer.Option(help="The cheapest that loses at most so much of bits per byte: 0.5%.", rich_help_panel=BUDGET),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Sequences of a decode step, for --tok-s.", rich_help_panel=BUDGET)
    ] = 1,
    context: Annotated[
        int, typer.Option(min=0, help="Cached tokens of each, for --tok-s.", rich_help_panel=BUDGET)
    ] = 512,
    hardware: Annotated[
        str | None,
        typer.Option(help="For --tok-s, as in moe-opt predict: h200, this, or a .json file.", rich_help_panel=BUDGET),
    ] = None,
    tp: Annotated[int, typer.Option(min=1, help="Devices of --hardware.", rich_help_panel=BUDGET)] = 1,
    statistics: Annotated[
        Path | None,
        typer.Option(help="Folder of moe-opt calibrate: schedules by router weight are tried too. With --mean-na."),
    ] = None,
    rescale: Annotated[
        str | None, typer.Option(help="Of kept weights: router, mass, a factor, or auto (default), chosen by loss.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Name to write the schedule under, into --policy.", rich_help_panel=WRITTEN)
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy file; made where it is missing.", rich_help_panel=WRITTEN)
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="--profile may be there already.", rich_help_panel=WRITTEN)
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Results folder; an unfinished search is gone on with.", rich_help_panel=WRITTEN),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=WRITTEN)] = False,
    tokens: Annotated[
        int, typer.Option(min=1024, help="Of text to fit on; three times as many decide.", rich_help_panel=SIZE)
    ] = 24_000,
    piece: Annotated[
        int, typer.Option(min=8, help="Tokens of a prompt, at most: longer text is cut.", rich_help_panel=SIZE)
    ] = 512,
    mixes: Annotated[int, typer.Option(min=0, help="Random schedules.", rich_help_panel=SIZE)] = 32,
    minutes: Annotated[
        float, typer.Option(min=0, help="After which no new round begins.", rich_help_panel=SIZE)
    ] = 12.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the text's order and of the mixes.", rich_help_panel=SIZE)] = 0,
    dtype: Annotated[str, typer.Option(help="Number format of a server started here.", rich_help_panel=SIZE)] = "auto",
    from_measurements: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Measured schedules instead of a model: columns b,h,e,p or layers, and a score.",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="Instead of --model: its number of MoE layers.", rich_help_panel=MEASURED)
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Instead of --model: its routed experts per token.", rich_help_panel=MEASURED)
    ] = None,
    score_column: Annotated[
        str | None, typer.Option(help="Default: score, paper_avg, average, ...", rich_help_panel=MEASURED)
    ] = None,
    lower_is_better: Annotated[
        bool | None,
        typer.Option(
            "--lower-is-better/--higher-is-better", help="Default: by the column's name.", rich_help_panel=MEASURED
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Schedules shown of each kind.", rich_help_panel=MEASURED)] = 5,
    predict: Annotated[
        list[str] | None,
        typer.Option(help="A schedule to predict: 6,4,2,26 or 6-5-5-... or 4. Repeatable.", rich_help_panel=MEASURED),
    ] = None,
    layer_base: Annotated[Literal["moe", "all"], typer.Option(help="What p counts.", rich_help_panel=MEASURED)] = "moe",
) -> None:
    """Find the schedule of least loss within a budget, or the cheapest within a loss.

    On a model: measure what each layer loses by fewer experts, through a server; fit, allocate, verify on other text,
    and write a profile. With --statistics, the best tables are then tried by router weight. Ctrl-C keeps what was
    measured; the same command with the same --out goes on from there.

    With --from-measurements: predict schedules that were not measured from a table of those that were.
    """
    of_model: dict[str, Any] = {"--corpus": corpus, "--url": url, "--bytes-per-token": bytes_per_token}
    of_model |= {"--tok-s": tok_s, "--hardware": hardware, "--max-loss": max_loss, "--rescale": rescale}
    of_model |= {"--profile": profile, "--policy": policy, "--statistics": statistics}
    of_measured: dict[str, Any] = {"--layers": layers, "--top-k": top_k}
    of_measured |= {"--score-column": score_column, "--predict": predict}
    if from_measurements is not None:
        _refuse(of_model, "only without --from-measurements")
        from sglang_moe_opt.cli.schedule_search_measured import measured_shape, run_measured

        run_measured(
            from_measurements,
            column=score_column,
            shape=measured_shape(model, layers, top_k),
            mean_na=mean_na,
            top=top,
            predict=predict or (),
            out=out,
            as_json=as_json,
            layer_base=layer_base,
            lower_is_better=lower_is_better,
        )
        return
    _refuse(of_measured, "only with --from-measurements")
    from sglang_moe_opt.cli.schedule_search_job import Order
    from sglang_moe_opt.cli.schedule_search_model import run_model

    run_model(
        Order(
            model=model,
            corpus=corpus,
            data_dir=data_dir,
            url=url,
            budgets={"mean_na": mean_na, "bytes_per_token": bytes_per_token, "tok_s": tok_s, "max_loss": max_loss},
            concurrency=concurrency,
            context=context,
            hardware=hardware,
            tp=tp,
            statistics=statistics,
            rescale=rescale or "auto",
            profile=profile,
            policy=policy,
            replace=replace,
            out=out,
            tokens=tokens,
            piece=piece,
            mixes=mixes,
            minutes=minutes,
            seed=seed,
            dtype=dtype,
        ),
        as_json=as_json,
    )


def _refuse(options: dict[str, Any], allowed: str) -> None:
    """Raise FieldError for the first of these options that was given."""
    for name, value in options.items():
        if value is not None and value != []:
            raise FieldError(name, value if isinstance(value, str | int | float) else str(value), allowed)
