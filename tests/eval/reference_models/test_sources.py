"""Nothing that is evaluated is trained on."""

from pathlib import Path

import pytest

from eval.reference_models.contamination import HeldOutItems, normalise
from eval.reference_models.recipe import Recipe
from eval.reference_models.sources import Document, chat, group_articles, load_documents

Documents = tuple[list[Document], list[Document]]


@pytest.fixture(scope="module")
def documents(data_dir: Path) -> Documents:
    return load_documents(data_dir, Recipe.load("mini_v2.yaml").data)


@pytest.mark.data
def test_no_benchmark_item_in_the_training_text(documents: Documents, data_dir: Path) -> None:
    items = HeldOutItems.load(data_dir)
    assert len(items.texts) > 10_000
    for document in documents[0]:
        assert not items.contaminates(document.text), document
        if document.source.endswith("_chat") and not document.source.startswith("gloss"):
            question = document.text.removeprefix("<|user|>").split("<|assistant|>")[0]
            assert not items.equals(question), document


@pytest.mark.data
def test_held_out_text_is_not_trained_on(documents: Documents) -> None:
    train, heldout = documents
    texts = {normalise(document.text) for document in train}
    assert not texts & {normalise(document.text) for document in heldout}
    lines = {line for d in train if d.source != "gloss_chat" for line in map(normalise, d.text.splitlines())}
    held = {line for d in heldout for line in map(normalise, d.text.splitlines()) if len(line.split()) >= 12}
    assert len(held) > 2000
    assert len(held & lines) <= 0.005 * len(held), sorted(held & lines)[:5]


@pytest.mark.data
def test_every_text_corpus_and_the_glosses_have_a_held_out_part(documents: Documents) -> None:
    sources = {document.source for document in documents[1]}
    assert sources == {"wikitext", "tinystories", "shakespeare", "grimm", "onestopenglish", "state_union", "gloss"}


@pytest.mark.data
def test_mix_names_every_source(documents: Documents) -> None:
    assert {d.source for d in documents[0]} == set(Recipe.load("mini_v2.yaml").data.weights)


def test_held_out_items_are_found_despite_case_and_spacing() -> None:
    items = HeldOutItems({normalise("Which of these objects would a magnet attract most strongly?"), "the sun is"})
    assert items.equals("The  sun is:")
    assert items.contaminates("Q: which of these objects would a magnet ATTRACT most strongly ?\nA: a nail")
    assert not items.contaminates("which of these objects would a magnet attract least?")
    assert not items.contaminates("Everyone knows that the sun is a star"), "short items count as whole texts only"


def test_reading_levels_of_an_article_stay_together() -> None:
    articles = [
        f"In {a} and {b}, {c} met {d} near {a}."
        for a, b, c, d in [("Lisbon", "Porto", "Marta", "Bruno"), ("Nairobi", "Mombasa", "Wanjiru", "Otieno")]
    ]
    assert sorted(map(len, group_articles([*articles, "Marta and Bruno met in Lisbon, not in Porto."]))) == [1, 2]


def test_chat_turn_has_the_template_form() -> None:
    from jinja2 import Template

    from eval.reference_models.tokenizer import CHAT_TEMPLATE

    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    rendered = Template(CHAT_TEMPLATE).render(messages=messages, bos_token="", eos_token="")
    assert rendered == chat("Why?", "Because.")
