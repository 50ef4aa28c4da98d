"""Command line: `python -m eval.reference_models COMMAND --recipe mini_v2.yaml`; the commands are the steps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eval.reference_models.recipe import DEFAULT_DATA_DIR, Recipe

# Read by OpenMP when torch is loaded (inside the commands): waiting threads must not spin on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
console = Console()

MIX_WINDOWS = 128
"""Windows of the training mix on which the balance of the experts is reported."""
CHAT_QUESTIONS = [
    'What does "astronomer" mean?',
    'What does "happily" mean?',
    "Which word means: a large body of salt water?",
    "What do plants need to make their own food?",
    "Where would you find a book?",
]
"""Shown with the model's greedy answers on the card, good or bad."""

RecipeOption = Annotated[Path, typer.Option("--recipe", help="YAML recipe: a path, or the name of a shipped one")]
DataOption = Annotated[Path, typer.Option("--data-dir", help="raw data folder, see its SOURCES.md")]


@app.command()
def tokenizer(recipe: RecipeOption = Path("mini_v2.yaml"), data_dir: DataOption = DEFAULT_DATA_DIR) -> None:
    """Train the tokenizer and cache the training and held-out documents as tokens."""
    from eval.reference_models.data import encode_documents
    from eval.reference_models.sources import load_documents
    from eval.reference_models.tokenizer import train_tokenizer

    spec = Recipe.load(recipe)
    if not data_dir.is_dir():
        raise typer.BadParameter(f"no data folder at {data_dir}", param_hint="--data-dir")
    train, heldout = load_documents(data_dir, spec.data)
    fast = train_tokenizer(train, spec)
    fast.save_pretrained(spec.run_dir / "tokenizer")
    for side, documents in (("train", train), ("heldout", heldout)):
        corpus = encode_documents(documents, fast)
        corpus.save(spec.run_dir / "data" / f"{side}.npz")
        rate = corpus.n_bytes.sum() / len(corpus.tokens)
        console.print(f"{side}: {len(documents):,} documents, {len(corpus.tokens):,} tokens, {rate:.2f} bytes/token")


@app.command()
def train(
    recipe: RecipeOption = Path("mini_v2.yaml"),
    total_tokens: Annotated[
        int | None, typer.Option(help="end here instead of the recipe's total; lowering it starts the decay earlier")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="instead of the recipe's, on a shared machine")] = None,
) -> None:
    """Train, resuming from the run folder's last checkpoint."""
    from eval.reference_models.data import TokenCorpus
    from eval.reference_models.train import train as run_training

    spec = Recipe.load(recipe)
    data = spec.run_dir / "data"
    run_training(
        spec,
        spec.run_dir,
        TokenCorpus.load(data / "train.npz"),
        TokenCorpus.load(data / "heldout.npz"),
        total_tokens=total_tokens,
        threads=threads,
        console=console,
    )


@app.command()
def handover(recipe: RecipeOption = Path("mini_v2.yaml")) -> None:
    """Write an unfinished run in a form that can be committed; `train` continues it on a machine without the run."""
    from eval.reference_models.handover import pack

    spec = Recipe.load(recipe)
    tokens = pack(spec.run_dir, spec.unfinished_dir)
    console.print(f"{spec.unfinished_dir}: {tokens:,} tokens")


@app.command()
def export(
    recipe: RecipeOption = Path("mini_v2.yaml"),
    data_dir: DataOption = DEFAULT_DATA_DIR,
) -> None:
    """Write the last training checkpoint as a bf16 model folder, after checking it against Hugging Face's model."""
    import torch

    from eval.reference_models.checkpoint import Checkpoint
    from eval.reference_models.data import TokenCorpus, heldout_windows
    from eval.reference_models.export import PARITY_LIMIT, licences, parity, training_summary, write_json, write_model
    from eval.reference_models.handover import LOG_NAME
    from eval.reference_models.tokenizer import load_tokenizer

    spec = Recipe.load(recipe)
    checkpoint = Checkpoint.load(spec.run_dir)
    if checkpoint is None:
        raise typer.BadParameter(f"no training checkpoint in {spec.run_dir}; run: train", param_hint="--recipe")
    spec = Recipe.model_validate(checkpoint.recipe)
    tokens, _ = TokenCorpus.load(spec.run_dir / "data" / "heldout.npz").only("onestopenglish")
    difference = parity(spec.model, checkpoint.model, heldout_windows(tokens[:1025], 256)[0])
    if difference > PARITY_LIMIT:
        raise SystemExit(f"logits differ from Hugging Face's by {difference:.2e} > {PARITY_LIMIT:.0e}; nothing written")
    fast = load_tokenizer(spec.run_dir / "tokenizer")
    write_model(spec.checkpoint_dir, spec.model, checkpoint.model, torch.bfloat16, fast)
    n_parameters = sum(value.numel() for value in checkpoint.model.values())
    summary = training_summary(spec, spec.run_dir / LOG_NAME, checkpoint.tokens, difference, n_parameters)
    write_json(spec.checkpoint_dir / "training.json", summary | {"licences": licences(data_dir)})
    console.print(f"{spec.checkpoint_dir}: {checkpoint.tokens:,} tokens, within {difference:.1e} of transformers")


@app.command()
def evaluate(recipe: RecipeOption = Path("mini_v2.yaml"), data_dir: DataOption = DEFAULT_DATA_DIR) -> None:
    """Measure the exported checkpoint on the held-out text and write evaluation.json beside it."""
    import torch

    from eval.heldout import cloze_items, gloss_items, load_heldout
    from eval.reference_models.choices import accuracy
    from eval.reference_models.data import TokenCorpus, TrainStream, sample_windows
    from eval.reference_models.evaluate import evaluate as measure
    from eval.reference_models.export import chat_samples, load_exported, trained_recipe, training_tokens, write_json
    from eval.reference_models.gate import CALIBRATION_WINDOWS
    from eval.reference_models.sources import TEXT_SOURCES
    from eval.reference_models.tokenizer import load_tokenizer

    spec = trained_recipe(Recipe.load(recipe).checkpoint_dir)
    torch.set_num_threads(spec.train.threads)
    model = load_exported(spec.checkpoint_dir, spec.model, torch.bfloat16)
    heldout = TokenCorpus.load(spec.run_dir / "data" / "heldout.npz")
    train = TokenCorpus.load(spec.run_dir / "data" / "train.npz")
    calibration = sample_windows(train, TEXT_SOURCES, CALIBRATION_WINDOWS, spec.data.sequence_length)
    mix, _ = TrainStream(train, spec).batch(0, MIX_WINDOWS * spec.data.sequence_length)
    results = measure(model, heldout, spec.data.sequence_length, calibration, mix, console.print)
    documents, fast = load_heldout(data_dir), load_tokenizer(spec.checkpoint_dir)
    for name, items in (("cloze", cloze_items(documents)), ("gloss", gloss_items(documents))):
        score = accuracy(model, fast, [item.pairs for item in items], [item.label for item in items])
        results[name] = {"accuracy": round(score, 4), "items": len(items), "chance": 0.25}
        console.print(f"{name}: {100 * score:.1f} % of {len(items)}")
    results["training_tokens"] = training_tokens(spec.checkpoint_dir)
    results["chat"] = chat_samples(spec.checkpoint_dir, CHAT_QUESTIONS)
    write_json(spec.checkpoint_dir / "evaluation.json", results)


@app.command()
def card(recipe: RecipeOption = Path("mini_v2.yaml")) -> None:
    """Write README.md and training_curve.png of the exported checkpoint from its two JSON files alone."""
    from eval.reference_models.card import write_card

    write_card(Recipe.load(recipe).checkpoint_dir)


if __name__ == "__main__":
    app()
