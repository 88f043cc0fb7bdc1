"""Sampling text from a trained model, one token at a time."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from fusedlstm.lm import checkpoint
from fusedlstm.lm.checkpoint import CheckpointError
from fusedlstm.lm.config import SEED_LIMIT
from fusedlstm.lm.data import Vocabulary
from fusedlstm.lm.model import LanguageModel


def load_model(path: str | os.PathLike[str]) -> tuple[LanguageModel, Vocabulary]:
    """Read a trained model.

    Args:
        path: a checkpoint.

    Returns:
        The model in eval mode, and the vocabulary of its tokens.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: the file is not a usable checkpoint.

    Example:
        >>> model, vocabulary = load_model("model.safetensors")  # doctest: +SKIP
    """
    stored = checkpoint.load(path)
    model = stored.config.build_model(stored.vocabulary.size)
    try:
        model.load_state_dict(stored.group("model"))
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint must be whole, got a damaged one: {os.fspath(path)} ({error})") from error
    return model.eval(), stored.vocabulary


def sample(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: str = "",
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> str:
    """Continue a text with a model.

    Args:
        model: in eval mode.
        vocabulary: of its tokens.
        prompt: the text to continue; the model reads a new line before it.
        length: tokens to add.
        temperature: divides the logits; below 1 likely tokens become more likely, above 1 less.
        top_k: draw among this many most likely tokens only; 1 always takes the most likely, None allows all.
        seed: the same seed gives the same text.

    Returns:
        The prompt and what was added.

    Raises:
        ValueError: an argument is out of its range, or the prompt holds a word that the vocabulary lacks.

    Example:
        >>> from fusedlstm.lm.data import ByteVocabulary
        >>> text = sample(LanguageModel(256, 4, 8, 1).eval(), ByteVocabulary(), "def ", length=10)
        >>> text.startswith("def ")
        True
    """
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a finite number above 0, got {temperature}; top_k 1 is the limit at 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}; leave it out to draw among all tokens")
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed must be at least 0 and below 2**63, got {seed}")
    text = prompt.encode("utf-8", errors="surrogateescape")  # as Python decodes a command line
    unknown = vocabulary.unknown(text)
    if unknown:
        raise ValueError(
            f"prompt must use words of the checkpoint's vocabulary, got {unknown[0]!r}; write <unk> for it"
        )
    # In training nearly every token has others before it. After a prompt without any the model may write nonsense and
    # never recover, so it reads a new line first.
    start = vocabulary.encode(b"\n").tolist()
    tokens = vocabulary.encode(text).tolist()

    generator = torch.Generator().manual_seed(seed)
    x, hx = torch.tensor(start + tokens)[:, None], None
    with torch.no_grad():
        for _ in range(length):
            logits, hx = model(x, hx)
            x = _draw(logits[-1, 0] / temperature, top_k, generator).view(1, 1)
            tokens.append(int(x))
    return vocabulary.decode(tokens)


def _draw(logits: Tensor, top_k: int | None, generator: torch.Generator) -> Tensor:
    values, candidates = logits.topk(min(top_k or len(logits), len(logits)))
    return candidates[torch.multinomial(values.softmax(0), 1, generator=generator)]
