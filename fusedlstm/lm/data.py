"""Text to tokens: vocabularies, the corpus and its split, windows for truncated backpropagation through time."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fusedlstm.lm import files, memory
from fusedlstm.lm.errors import InputError

UNKNOWN = "<unk>"
END_OF_LINE = "\n"
STANDARD_LIBRARY_BYTES = 4_000_000
_READ_BYTES = 2**24


class ByteVocabulary:
    """The 256 bytes: any text can be written and read back.

    Example:
        >>> vocabulary = ByteVocabulary()
        >>> vocabulary.decode(vocabulary.encode(b"def").tolist())
        'def'
    """

    words = None
    size = 256

    def encode(self, text: bytes) -> Tensor:
        """Return the tokens of a text, uint8 [K]."""
        return torch.frombuffer(bytearray(text), dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; bytes that are not UTF-8 become the replacement character."""
        return "".join(self.pieces(tokens))

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield that text bit by bit, a character once its last byte has come."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in tokens:
            yield decoder.decode(bytes([token]))
        yield decoder.decode(b"", final=True)

    def unknown(self, text: bytes) -> list[str]:
        """Return the words of a text that have no token: never any."""
        return []


class WordVocabulary:
    r"""Words between whitespace, the end of line, and ``<unk>`` for every other word.

    Args:
        words: the word of each token, ``<unk>`` and ``"\n"`` among them.

    Example:
        >>> vocabulary = WordVocabulary.build(b"to be or\nnot to be\n")
        >>> vocabulary.decode(vocabulary.encode(b"not to hurry\n").tolist())
        'not to <unk>\n'
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.size = len(words)
        self._tokens = {word: token for token, word in enumerate(words)}

    @classmethod
    def build(cls, text: bytes, max_words: int | None = None) -> WordVocabulary:
        """Collect the words of a text, most frequent first.

        Args:
            text: UTF-8 text; other bytes become the replacement character.
            max_words: how many words to keep beside ``<unk>`` and the end of line; None keeps all.

        Returns:
            The vocabulary; the same text always gives the same tokens.
        """
        counts = Counter(_split_words(text))
        del counts[UNKNOWN], counts[END_OF_LINE]
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([UNKNOWN, END_OF_LINE, *ranked[:max_words]])

    def encode(self, text: bytes) -> Tensor:
        """Return the tokens of a text, int32 [K]; words without a token become ``<unk>``."""
        unknown = self._tokens[UNKNOWN]
        return torch.tensor([self._tokens.get(word, unknown) for word in _split_words(text)], dtype=torch.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens, words separated by one space."""
        return "".join(self.pieces(tokens))

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield that text word by word."""
        before = END_OF_LINE
        for token in tokens:
            word = self.words[token]
            yield word if END_OF_LINE in (before, word) else f" {word}"
            before = word

    def unknown(self, text: bytes) -> list[str]:
        """Return the words of a text that have no token."""
        return [word for word in _split_words(text) if word not in self._tokens]


Vocabulary = ByteVocabulary | WordVocabulary


def _split_words(text: bytes) -> list[str]:
    words: list[str] = []
    for number, line in enumerate(text.decode("utf-8", errors="replace").split("\n")):
        if number:
            words.append(END_OF_LINE)
        words += line.split()
    return words


@dataclass(frozen=True)
class Corpus:
    """A text as tokens, in two contiguous parts.

    Attributes:
        vocabulary: what the tokens mean; built from the training part only.
        train: tokens of the training part, [K].
        held_out: tokens of the part that is never trained on, [M].
        held_out_bytes: length of that part's text in bytes.
        digest: SHA-256 of the whole text; the same digest means the same corpus.
    """

    vocabulary: Vocabulary
    train: Tensor
    held_out: Tensor
    held_out_bytes: int
    digest: str


def load_corpus(
    data: Sequence[str] = (), vocabulary: str = "bytes", max_words: int | None = None, held_out: float = 0.1
) -> Corpus:
    """Read a text and split it: the first part to train on, the rest held out.

    Args:
        data: files, joined in the order given; none means the Python standard library's top-level modules.
        vocabulary: ``"bytes"`` or ``"words"``.
        max_words: with words, how many to keep; None keeps all.
        held_out: fraction of the text held out, between 0 and 1. The cut falls on whitespace, so that no word is split.

    Returns:
        The corpus.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is empty, or the text is too short to hold anything out.

    Example:
        >>> corpus = load_corpus()
        >>> corpus.vocabulary.size
        256
    """
    text = _read(data) if data else _standard_library()
    cut = int(len(text) * (1 - held_out))
    space = re.compile(rb"\s").search(text, cut)
    cut = space.end() if space else cut
    kept, rest = text[:cut], text[cut:]
    tokens = WordVocabulary.build(kept, max_words) if vocabulary == "words" else ByteVocabulary()
    corpus = Corpus(tokens, tokens.encode(kept), tokens.encode(rest), len(rest), hashlib.sha256(text).hexdigest())
    if len(corpus.held_out) < 2:
        raise InputError(
            f"data must leave at least 2 tokens to the held-out part, got {len(corpus.held_out)} "
            f"({held_out:g} of {len(text):,} bytes); give more text or hold out a larger part"
        )
    return corpus


def _read(names: Sequence[str]) -> bytes:
    limit = memory.host() // 4  # bytes of the text, of which there are copies and tokens; it ends a pipe without an end
    text = bytearray()
    for name in names:
        before = len(text)
        try:
            with files.open_to_read(name, pipes=True) as file:
                size = before + os.fstat(file.fileno()).st_size
                while size <= limit and (block := file.read(_READ_BYTES)):
                    text += block
                    size = max(size, len(text))
        except OSError as error:
            reason = error.strerror or error
            shown = name or "an empty name"
            raise OSError(f"data must be readable files, cannot read {shown}: {reason}; check the path") from error
        if size > limit:
            raise InputError(f"data must be at most {limit:,} bytes on this machine, got more: {name}; give less text")
        if len(text) == before:
            raise InputError(f"data must hold text, got an empty file: {name}; leave it out")
    return bytes(text)


def _standard_library() -> bytes:
    """Return the source text of the interpreter's top-level modules, up to STANDARD_LIBRARY_BYTES."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if path.name.startswith("_sysconfigdata"):  # generated, with paths of the machine that built Python
            continue
        try:
            text += path.read_bytes()
        except OSError:
            continue
    if not text:
        raise InputError("data must name text files here: this Python comes without the source of its standard library")
    return bytes(text[:STANDARD_LIBRARY_BYTES])


class Batches:
    """Windows over N contiguous streams of a token sequence, targets one token ahead.

    Sequence n of window k + 1 continues sequence n of window k, so that a recurrent state can be carried over.

    Args:
        tokens: [K].
        window: steps of a window, T.
        batch_size: number of streams, N.
        drop_last: leave out a last window shorter than T.

    Example:
        >>> x, target = Batches(torch.arange(7), window=3, batch_size=2)[0]
        >>> x.tolist(), target.tolist()
        ([[0, 3], [1, 4], [2, 5]], [[1, 4], [2, 5], [3, 6]])
    """

    def __init__(self, tokens: Tensor, window: int, batch_size: int, drop_last: bool = True) -> None:
        length = (len(tokens) - 1) // batch_size
        used = length * batch_size
        self._inputs = tokens[:used].view(batch_size, length).t()
        self._targets = tokens[1 : used + 1].view(batch_size, length).t()
        self._window = window
        self._count = length // window if drop_last else -(-length // window)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of one window, int64 [T, N] each."""
        if not 0 <= index < self._count:
            raise IndexError(f"window must be between 0 and {self._count - 1}, got {index}")
        steps = slice(index * self._window, (index + 1) * self._window)
        return self._inputs[steps].long(), self._targets[steps].long()
