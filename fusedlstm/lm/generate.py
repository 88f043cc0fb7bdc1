"""Sampling text from a trained model, one token at a time."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from fusedlstm.lm import checkpoint
from fusedlstm.lm.config import SEED_LIMIT
from fusedlstm.lm.data import Vocabulary
from fusedlstm.lm.errors import InputError
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
    model.load_state_dict(stored.group("model"))
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
    """Continue a text with a model; :func:`stream` yields the same text while it is made.

    Args:
        model: in eval mode.
        vocabulary: of its tokens.
        prompt: the text to continue; the model reads a new line before it.
        length: tokens to add.
        temperature: divides the logits; below 1 likely tokens become more likely, above 1 less. The limit at 0, always
            the most likely token, is ``top_k=1``.
        top_k: draw among this many most likely tokens only; 1 always takes the most likely, None allows all.
        seed: the same seed gives the same text.

    Returns:
        The prompt and what was added.

    Raises:
        ValueError: an argument is out of its range, or the prompt holds a word that the vocabulary lacks.
        FloatingPointError: the model's logits are not finite.

    Example:
        >>> from fusedlstm.lm.data import ByteVocabulary
        >>> text = sample(LanguageModel(256, 4, 8, 1).eval(), ByteVocabulary(), "def ", length=10)
        >>> text.startswith("def ")
        True
    """
    return "".join(stream(model, vocabulary, prompt, length, temperature, top_k, seed))


def stream(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: str = "",
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Continue a text, and yield it piece by piece: the prompt, then each character or word as it is complete.

    Args, errors: as for :func:`sample`; arguments are checked before the first piece is asked for.

    Returns:
        Pieces that joined are the text of :func:`sample`.

    Example:
        >>> from fusedlstm.lm.data import ByteVocabulary
        >>> for piece in stream(LanguageModel(256, 4, 8, 1).eval(), ByteVocabulary(), "def ", length=10):
        ...     print(piece, end="", flush=True)  # doctest: +SKIP
    """
    if length < 0:
        raise InputError(f"length must be at least 0, got {length}")
    if not 0 < temperature <= sys.float_info.max:
        raise InputError(f"temperature must be a finite number above 0, got {temperature}; top_k 1 is the limit at 0")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k must be at least 1, got {top_k}; leave it out to draw among all tokens")
    if not 0 <= seed < SEED_LIMIT:
        raise InputError(f"seed must be at least 0 and below 2**63, got {seed}")
    try:
        text = prompt.encode("utf-8", errors="surrogateescape")  # as Python decodes a command line
    except UnicodeEncodeError as error:
        raise InputError(f"prompt must be text, got half of a surrogate pair, {prompt[error.start]!r}") from error
    if unknown := vocabulary.unknown(text):
        raise InputError(
            f"prompt must use words of the checkpoint's vocabulary, got {unknown[0]!r}; write <unk> for it"
        )
    # In training nearly every token has others before it. After a prompt without any the model may write nonsense and
    # never recover, so it reads a new line first.
    start, given = vocabulary.encode(b"\n").tolist(), vocabulary.encode(text).tolist()
    drawn = _tokens(model, start + given, length, temperature, top_k, seed)
    return vocabulary.pieces(itertools.chain(given, drawn))


def _tokens(
    model: LanguageModel, before: list[int], length: int, temperature: float, top_k: int | None, seed: int
) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    x, hx = torch.tensor(before)[:, None], None
    for _ in range(length):
        with torch.no_grad():  # not around the loop: what asks for tokens would run in it
            logits, hx = model(x, hx)
            x = _draw(logits[-1, 0], temperature, top_k, generator).view(1, 1)
        yield int(x)


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    values, candidates = logits.topk(min(top_k or len(logits), len(logits)))
    if not math.isfinite(values[0]):  # the largest; NaN counts as larger than any
        raise FloatingPointError(
            f"checkpoint must give finite logits, got {values[0].item()}; train with a smaller learning rate"
        )
    # Relative to the largest and in float64, so that no temperature makes it NaN or infinite.
    probabilities = ((values - values[0]).double() / temperature).softmax(0)
    return candidates[torch.multinomial(probabilities.float(), 1, generator=generator)]
