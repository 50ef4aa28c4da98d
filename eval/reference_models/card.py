"""The model card and its training curve, made from `training.json` and `evaluation.json` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval.reference_models.export import ARCHITECTURES
from eval.reference_models.gate import CALIBRATION_WINDOWS
from sglang_moe_opt.pyplot import pyplot

SOURCE_FILES = {
    "wikitext": ["corpora/wikitext2_valid.txt", "corpora/wikitext2_test.txt"],
    "tinystories": ["corpora/tinystories_sample.txt"],
    "shakespeare": ["corpora/tinyshakespeare.txt"],
    "grimm": ["corpora/grimm_tales.txt"],
    "onestopenglish": ["corpora/onestopenglish.txt"],
    "state_union": ["corpora/state_union.txt"],
    "gloss": ["corpora/wordnet_glosses.txt"],
    "boolq": ["boolq/train.jsonl"],
    "rte": ["rte/train.jsonl"],
    "winogrande": ["winogrande/train.jsonl"],
    "arc": ["arc_easy/train.jsonl", "arc_challenge/train.jsonl"],
    "openbookqa": ["openbookqa/train.jsonl"],
    "commonsenseqa": ["qa_extra/commonsenseqa_train.jsonl"],
    "facts": [
        "qa_extra/obqa_openbook_facts.txt",
        "qa_extra/obqa_crowdsourced_facts.txt",
        "qa_extra/obqa_train_fact1.jsonl",
    ],
}
"""Mix source to data files; `X_chat` is the same data as X, written with the chat template."""


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _sources(training: dict[str, Any], evaluation: dict[str, Any]) -> str:
    weights = training["recipe"]["data"]["weights"]
    rows = []
    for source, files in SOURCE_FILES.items():
        bits = evaluation["bpb"].get(source)
        rows.append(
            [
                source,
                ", ".join(f"`{file}`" for file in files),
                "; ".join(dict.fromkeys(training["licences"].get(file, "?") for file in files)),
                f"{weights[source]:g}",
                f"{weights[source + '_chat']:g}" if f"{source}_chat" in weights else "",
                f"{bits:.3f}" if bits is not None else "",
            ]
        )
    return _table(["source", "files", "licence", "as text, times per epoch", "as chat", "held-out bits/byte"], rows)


def _experts(evaluation: dict[str, Any]) -> str:
    rows = []
    for row in evaluation["experts_per_token"]:
        low, high = row["change_percent_95"]
        rows.append(
            [str(row["na"]), f"{row['bpb']:.4f}", f"{row['change_percent']:+.2f} %", f"{low:+.2f} to {high:+.2f} %"]
        )
    return _table(["na", "bits/byte", "change", "95 % interval, paired"], rows)


def _routing(evaluation: dict[str, Any]) -> str:
    keys = ("load_max_over_mean", "load_min_over_mean", "router_entropy", "top_k_mass")
    rows = [
        [str(text["layer"]), f"{mix['load_max_over_mean']:.2f}", *(f"{text[key]:.2f}" for key in keys)]
        for text, mix in zip(evaluation["routing"], evaluation["routing_on_training_mix"], strict=True)
    ]
    heads = ["layer", "busiest expert / mean, training mix", "the same, held-out text", "idlest / mean"]
    return _table([*heads, "router entropy / uniform", "top-k mass"], rows)


def _pruning(evaluation: dict[str, Any]) -> str:
    rows = []
    for row in evaluation["pruned_to_half"]:
        low, high = row["change_percent_95"]
        rows.append(
            [str(row["experts"]), row["method"], f"{row['change_percent']:+.2f} %", f"{low:+.2f} to {high:+.2f} %"]
        )
    return _table(["experts kept", "chosen by", "change of held-out loss", "95 % interval, paired"], rows)


def _choices(evaluation: dict[str, Any]) -> str:
    names = {
        "cloze": "cloze: the word that continues held-out text, among 4 of like frequency",
        "gloss": "gloss: the words of a held-out WordNet gloss, among 4",
    }
    rows = [
        [text, f"{100 * evaluation[name]['accuracy']:.1f} %", str(evaluation[name]["items"]), "25 %"]
        for name, text in names.items()
        if name in evaluation
    ]
    return _table(["task", "accuracy", "items", "chance"], rows)


def _architecture(model: dict[str, Any]) -> str:
    shared = f"{model['n_shared_experts']} shared expert" + ("s" if model["n_shared_experts"] > 1 else "")
    if model["model_type"] == "deepseek_v3":
        router = (
            f"sigmoid router with bias correction, {model['topk_group']} of {model['n_group']} groups, renormalised"
        )
    else:
        router = "softmax router without renormalisation"
    scale = f"routed scaling factor {model['routed_scaling_factor']:g}"
    return f"top-{model['num_experts_per_tok']}, {shared}, {router}, {scale}"


def _balance(recipe: dict[str, Any]) -> str:
    text = f"auxiliary balance loss with alpha {recipe['balance']['aux_loss_alpha']:g}"
    if recipe["model"]["model_type"] == "deepseek_v3":
        return f"balance by the router's bias, {recipe['balance']['bias_rate']:g} a step; {text}"
    return text


def card_text(training: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """README.md of one reference model."""
    recipe = training["recipe"]
    model, train = recipe["model"], recipe["train"]
    family = model["model_type"].removeprefix("deepseek_").upper()
    chat = "\n".join(f"- {question} -> {answer.strip()}" for question, answer in evaluation["chat"].items())
    file = training["name"].replace("-", "_") + ".yaml"
    return f"""---
language: en
library_name: transformers
pipeline_tag: text-generation
---
# {training["name"]}

A small DeepSeek-{family} mixture-of-experts language model, trained from scratch on CPU as a reference for experiments
with fewer activated experts. It exists so that expert skipping can be measured and demonstrated on any machine; it is
not useful as an assistant.

- Architecture: `{model["model_type"]}`, {training["parameters"] / 1e6:.1f} M parameters, hidden size
  {model["hidden_size"]}, {model["num_hidden_layers"]} layers ({model["first_k_dense_replace"]} dense),
  {model["n_routed_experts"]} routed experts of width {model["moe_intermediate_size"]},
  {_architecture(model)}, multi-head latent attention.
- Weights: bfloat16. Before rounding, logits differ from transformers' `{ARCHITECTURES[model["model_type"]]}` by at most
  {training["logit_difference_from_hugging_face"]:.1e} (float32).
- Training: {training["tokens"] / 1e6:.1f} M tokens in sequences of {recipe["data"]["sequence_length"]}, batches of
  {train["batch_tokens"]} tokens, Muon for the matrices and AdamW for the rest, warm-up / constant / linear decay over
  the last {100 * train["decay_fraction"]:.0f} %; {_balance(recipe)}.
- Tokenizer: byte-level BPE of {model["vocab_size"]} tokens, trained on the training side of the mix.
- Held-out text: **{evaluation["text_bpb"]:.3f} bits per byte** over {evaluation["text_bytes"] / 1e3:.0f} kB of whole
  articles, stories and chapters.

{_choices(evaluation)}

![training curve](training_curve.png)

## Fewer experts per token

Held-out text with the same number of experts `na` in every layer, chosen by the router, without any retraining.
Intervals: bootstrap over {evaluation["text_windows"]} windows, paired with na = {model["num_experts_per_tok"]}.

{_experts(evaluation)}

## Fewer experts in the model

Held-out text with half of the experts of every layer hidden, without any retraining: those with the largest sum of
router weights on {CALIBRATION_WINDOWS} windows of the same sources' training text kept, or a random half.

{_pruning(evaluation)}

## Routing

The load was balanced over the whole training mix. Running text alone leaves the experts of question formats idle.

{_routing(evaluation)}

## Data

Licences as listed with the data; confirm before redistribution. One article, story, chapter or speech in
{recipe["data"]["holdout_every"]} and one WordNet gloss in {recipe["data"]["holdout_every_gloss"]} are held out
(all reading levels of a OneStopEnglish article together). Training texts that contain a validation or test item of
ARC, OpenBookQA, BoolQ, RTE, WinoGrande or CommonsenseQA were dropped, and so were BoolQ training items whose passage
belongs to a validation item.

{_sources(training, evaluation)}

## What it answers

Greedy, unselected:

{chat}

## Limitations

Keeping one routed expert of {model["num_experts_per_tok"]} changes the held-out loss by
{evaluation["experts_per_token"][-1]["change_percent"]:+.2f} %: effects of expert skipping on this model are bounded by
about that. Trained on a few million words of English: it has the form of a definition or a short answer more often
than the right content. Sequences longer than {recipe["data"]["sequence_length"]} tokens were never seen in training.
No safety training of any kind. Bits per byte include the begin and end token of each document and use windows of
{recipe["data"]["sequence_length"]} tokens without overlap, so tokens at a window's start have little context.

## Reproduce

```bash
python -m eval.reference_models tokenizer --recipe {file} --data-dir ../shared/data
python -m eval.reference_models train --recipe {file}     # resumable; total_tokens in the recipe
python -m eval.reference_models export --recipe {file}
python -m eval.reference_models evaluate --recipe {file}
python -m eval.reference_models card --recipe {file}
```

Numbers: `training.json`, which holds the recipe of these very weights, and `evaluation.json`.
"""


def plot_curve(training: dict[str, Any], path: Path) -> None:
    """Training loss, held-out bits per byte, learning rate and expert load against tokens, as PNG."""
    plt = pyplot()
    millions = [row["tokens"] / 1e6 for row in training["curve"]]
    heldout = training["heldout_bpb"]
    figure, (loss, bits, load) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    loss.plot(millions, [row["loss"] for row in training["curve"]], color="tab:blue")
    loss.set(title="training loss (mean of each interval)", ylabel="nats per token")
    bits.plot([row["tokens"] / 1e6 for row in heldout], [row["bpb"] for row in heldout], "o-", ms=3, color="tab:green")
    bits.set(title="held-out text (fixed sample)", ylabel="bits per byte")
    load.plot(millions, [row["load_max_over_mean"] for row in training["curve"]], color="tab:red")
    load.set(title="busiest expert of any layer / mean", ylabel="load ratio (one batch)")
    load.axhline(2.5, color="grey", lw=0.8, ls="--")
    rate = loss.twinx()
    rate.plot(millions, [row["lr"] for row in training["curve"]], color="grey", lw=0.8)
    rate.set_ylabel("learning rate", color="grey")
    for axis in (loss, bits, load):
        axis.set_xlabel("million tokens")
        axis.grid(alpha=0.3)
    figure.suptitle(training["name"])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_card(directory: Path) -> None:
    """Write README.md and training_curve.png into an exported model's folder."""
    for name in ("training.json", "evaluation.json"):
        if not (directory / name).exists():
            raise FileNotFoundError(f"no {name} in {directory}; run: python -m eval.reference_models export, evaluate")
    training = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    evaluation = json.loads((directory / "evaluation.json").read_text(encoding="utf-8"))
    if training["tokens"] != evaluation["training_tokens"]:
        raise ValueError(
            f"evaluation.json is of {evaluation['training_tokens']} tokens, the weights of {training['tokens']}: "
            f"evaluate again"
        )
    plot_curve(training, directory / "training_curve.png")
    (directory / "README.md").write_text(card_text(training, evaluation), encoding="utf-8")
