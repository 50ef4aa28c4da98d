"""The byte-level BPE tokenizer of the reference models, trained on the training side of the mix."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from eval.reference_models.recipe import Recipe
from eval.reference_models.sources import Document

BOS = "<|begin_of_text|>"
EOS = "<|end_of_text|>"
SPECIAL_TOKENS = (BOS, EOS, "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
"""Token ids 0 to 5, in this order."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(documents: list[Document], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Learn the merges on documents sampled with the mix's weights, so that the vocabulary fits the mix."""
    rng = random.Random(recipe.seed)
    weights = recipe.data.weights
    sample = [d.text for d in documents if rng.random() < min(1.0, weights.get(d.source, 0.0))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.model.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token="<|pad|>",
        additional_special_tokens=list(SPECIAL_TOKENS[3:]),
        model_max_length=recipe.model.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The saved tokenizer of a run or an exported checkpoint."""
    if not (directory / "tokenizer.json").exists():
        raise FileNotFoundError(f"no tokenizer in {directory}; run: python -m eval.reference_models tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(directory)
