"""Reads the raw data into documents: text corpora split by article, QA train splits as plain text and as chat."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.reference_models.contamination import HeldOutItems, read_jsonl
from eval.reference_models.recipe import DataSpec

ASSISTANT = "<|assistant|>"
USER = "<|user|>"

TEXT_SOURCES = ("wikitext", "tinystories", "shakespeare", "grimm", "onestopenglish", "state_union")
"""The corpora over which held-out bits per byte are reported."""


@dataclass(frozen=True)
class Document:
    """One training or held-out text (without begin/end tokens) and the source it belongs to."""

    source: str
    text: str


def chat(question: str, answer: str) -> str:
    """One turn as the chat template writes it."""
    return f"{USER}{question}{ASSISTANT}{answer}"


def _read(data_dir: Path, name: str) -> str:
    return (data_dir / name).read_text(encoding="utf-8")


def _split_before(text: str, heading: str) -> list[str]:
    """Cut `text` before every line that matches `heading`."""
    parts = re.split(rf"(?m)^(?={heading})", text)
    return [part.strip() for part in parts if part.strip()]


def _blocks(text: str, size: int) -> list[str]:
    """Consecutive blocks of about `size` characters, cut at blank lines."""
    blocks, current = [], ""
    for paragraph in text.split("\n\n"):
        current += paragraph + "\n\n"
        if len(current) >= size:
            blocks.append(current.strip())
            current = ""
    return [*blocks, current.strip()] if current.strip() else blocks


def _stories(text: str) -> list[str]:
    """TinyStories sample: paragraphs are separated by a blank line, stories by a single line break."""
    return [story.strip() for story in re.split(r"(?<!\n)\n(?!\n)", text) if story.strip()]


def group_articles(articles: list[str]) -> list[list[str]]:
    """Group the reading levels of one OneStopEnglish article, recognised by the rare proper names they share."""
    names = [set(re.findall(r"\b[A-Z][a-z]{3,}\b", article)) for article in articles]
    frequency = Counter(name for found in names for name in found)
    rare = [{name for name in found if frequency[name] <= 12} for found in names]
    parent = list(range(len(articles)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i in range(len(articles)):
        for j in range(i):
            if len(rare[i] & rare[j]) >= 0.4 * max(4, min(len(rare[i]), len(rare[j]))):
                parent[root(i)] = root(j)
    groups: dict[int, list[str]] = {}
    for i, article in enumerate(articles):
        groups.setdefault(root(i), []).append(article)
    return list(groups.values())


def text_groups(data_dir: Path) -> dict[str, list[list[str]]]:
    """Every text corpus as groups of documents; a group is held out or trained on as a whole."""

    def single(texts: list[str]) -> list[list[str]]:
        return [[text] for text in texts]

    corpora = {
        "wikitext": single(
            [
                article
                for part in ("valid", "test")
                for article in _split_before(_read(data_dir, f"corpora/wikitext2_{part}.txt"), r" = [^=\n]+ = *\n")
            ]
        ),
        "tinystories": single(_stories(_read(data_dir, "corpora/tinystories_sample.txt"))),
        "shakespeare": single(_blocks(_read(data_dir, "corpora/tinyshakespeare.txt"), 20_000)),
        "grimm": single(_split_before(_read(data_dir, "corpora/grimm_tales.txt"), r"[A-Z][A-Z ,’'-]{5,}\n")),
        "state_union": single(_split_before(_read(data_dir, "corpora/state_union.txt"), r"PRESIDENT [A-Z]")),
    }
    articles = re.split(r"\n\s*\n", _read(data_dir, "corpora/onestopenglish.txt"))
    corpora["onestopenglish"] = group_articles([article.strip() for article in articles if article.strip()])
    return corpora


def _glosses(lines: list[str], rng: random.Random) -> Iterator[Document]:
    """Plain: four neighbouring synsets a document. Chat: word to meaning, and for every fourth meaning to word."""
    for start in range(0, len(lines), 4):
        yield Document("gloss", "\n".join(lines[start : start + 4]))
    for line in lines:
        words, _, gloss = line.partition(": ")
        word = rng.choice(words.split(", "))
        if rng.random() < 0.25:
            yield Document("gloss_chat", chat(f"Which word means: {gloss.split('; ')[0]}?", word))
        else:
            yield Document("gloss_chat", chat(f'What does "{word}" mean?', gloss))


def _right_choice(row: dict[str, Any]) -> str:
    choices = row["choices"]
    return choices["text"][choices["label"].index(row["answerKey"])]


def _arc(row: dict[str, Any], name: str) -> Iterator[Document]:
    question, answer = row["question"], _right_choice(row)
    yield Document(name, f"Question: {question}\nAnswer: {answer}")
    yield Document(f"{name}_chat", chat(question, answer))


def _openbookqa(row: dict[str, Any], name: str) -> Iterator[Document]:
    stem, answer = row["question_stem"], _right_choice(row)
    yield Document(name, f"{stem} {answer}")
    yield Document(f"{name}_chat", chat(stem, answer))


def _boolq(row: dict[str, Any], name: str) -> Iterator[Document]:
    answer = "yes" if row["answer"] else "no"
    yield Document(name, f"{row['passage']}\nQuestion: {row['question']}?\nAnswer: {answer}")
    question = row["question"].capitalize()
    yield Document(f"{name}_chat", chat(f"{row['passage']}\n{question}?", answer.capitalize() + "."))


def _rte(row: dict[str, Any], name: str) -> Iterator[Document]:
    verdict = "True" if row["label"] == 0 else "False"
    yield Document(name, f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer: {verdict}")


def _winogrande(row: dict[str, Any], name: str) -> Iterator[Document]:
    yield Document(name, row["sentence"].replace("_", row[f"option{row['answer']}"]))


QA_SOURCES: tuple[tuple[str, str, Callable[[dict[str, Any], str], Iterator[Document]]], ...] = (
    ("arc", "arc_easy/train.jsonl", _arc),
    ("arc", "arc_challenge/train.jsonl", _arc),
    ("openbookqa", "openbookqa/train.jsonl", _openbookqa),
    ("commonsenseqa", "qa_extra/commonsenseqa_train.jsonl", _arc),
    ("boolq", "boolq/train.jsonl", _boolq),
    ("rte", "rte/train.jsonl", _rte),
    ("winogrande", "winogrande/train.jsonl", _winogrande),
)


def _question(row: dict[str, Any]) -> str:
    return row.get("question") or row.get("question_stem") or row.get("sentence1") or row["sentence"]


def _facts(data_dir: Path) -> list[str]:
    facts = [
        line.strip().strip('"')
        for name in ("openbook", "crowdsourced")
        for line in _read(data_dir, f"qa_extra/obqa_{name}_facts.txt").splitlines()
        if line.strip()
    ]
    facts += [row["fact1"] for row in read_jsonl(data_dir / "qa_extra/obqa_train_fact1.jsonl")]
    return ["\n".join(facts[start : start + 4]) for start in range(0, len(facts), 4)]


def _gloss_lines(data_dir: Path, spec: DataSpec) -> tuple[list[str], list[str]]:
    """WordNet's lines "words: gloss": those to train on, and the held-out ones."""
    lines = _read(data_dir, "corpora/wordnet_glosses.txt").splitlines()
    step = spec.holdout_every_gloss
    held_out = lines[step // 2 :: step]
    held_set = set(held_out)
    return [line for line in lines if line not in held_set], held_out


def _split_texts(data_dir: Path, spec: DataSpec) -> tuple[list[Document], list[Document]]:
    """Documents of the text corpora: those to train on, and the held-out ones."""
    train: list[Document] = []
    heldout: list[Document] = []
    for source, groups in text_groups(data_dir).items():
        for index, group in enumerate(groups):
            side = heldout if index % spec.holdout_every == spec.holdout_every // 2 else train
            side.extend(Document(source, text) for text in group)
    return train, heldout


def heldout_documents(data_dir: Path, spec: DataSpec) -> list[Document]:
    """The held-out side of `load_documents`, without the seconds that the training side takes."""
    glosses = _gloss_lines(data_dir, spec)[1]
    return [*_split_texts(data_dir, spec)[1], *(Document("gloss", line) for line in glosses)]


def load_documents(data_dir: Path, spec: DataSpec) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents, in a fixed order; the two sides share no article, chapter or gloss.

    Training documents that contain a benchmark validation or test item are dropped.
    """
    train, _ = _split_texts(data_dir, spec)
    train += _glosses(_gloss_lines(data_dir, spec)[0], random.Random(0))
    items = HeldOutItems.load(data_dir)
    for name, file, render in QA_SOURCES:
        for row in read_jsonl(data_dir / file):
            if not items.equals(_question(row)):
                train += render(row, name)
    train += [Document("facts", text) for text in _facts(data_dir)]
    return [document for document in train if not items.contaminates(document.text)], heldout_documents(data_dir, spec)
