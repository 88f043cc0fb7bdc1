"""Text as it is generated: piece by piece, no character broken, at any temperature."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusedlstm.lm import ByteVocabulary, InputError, WordVocabulary, load_model, sample, stream


def test_a_character_is_whole_when_it_is_shown():
    text = "a€😀é".encode()
    pieces = [*ByteVocabulary().pieces(text)]
    assert pieces == ["a", "", "", "€", "", "", "", "😀", "", "é", ""]
    assert [*ByteVocabulary().pieces(text[:-1])][-2:] == ["", "\N{REPLACEMENT CHARACTER}"]


@given(st.binary(max_size=30))
def test_pieces_of_bytes_are_those_of_one_decoding(text):
    assert "".join(ByteVocabulary().pieces(text)) == text.decode("utf-8", errors="replace")


@given(st.lists(st.integers(0, 3), max_size=12))
def test_words_are_separated_by_one_space_but_at_lines(tokens):
    vocabulary = WordVocabulary(["<unk>", "\n", "to", "be"])
    joined = " ".join(vocabulary.words[token] for token in tokens)
    assert vocabulary.decode(tokens) == re.sub(" ?\n ?", "\n", joined)


def test_a_stream_is_the_sample_and_comes_as_it_is_made(saved, monkeypatch):
    model, vocabulary = load_model(saved)
    expected = sample(model, vocabulary, "to be", length=20, seed=5)
    pieces, forward, calls = stream(model, vocabulary, "to be", length=20, seed=5), model.forward, []
    monkeypatch.setattr(model, "forward", lambda *arguments: (calls.append(1), forward(*arguments))[1])
    begin = [next(pieces) for _ in range(5)]
    assert (begin, calls) == ([*"to be"], [])
    assert torch.is_grad_enabled()
    more = [next(pieces) for _ in range(3)]
    assert len(calls) == 3
    assert torch.is_grad_enabled()
    assert "".join([*begin, *more, *pieces]) == expected


def test_arguments_are_checked_before_the_first_piece(saved):
    model, vocabulary = load_model(saved)
    for name, value in (("length", -1), ("temperature", 0), ("top_k", 0), ("seed", 2**63), ("prompt", "\ud800")):
        with pytest.raises(InputError, match=f"{name} must be"):
            stream(model, vocabulary, **{name: value})


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 5e-324])
def test_at_low_temperatures_the_most_likely_token_is_drawn(temperature, saved):
    model, vocabulary = load_model(saved)
    with torch.no_grad():
        model.output.weight *= 1000  # no two tokens are as likely
    cold = sample(model, vocabulary, length=50, temperature=temperature)
    assert cold == sample(model, vocabulary, length=50, top_k=1)


def test_at_the_highest_temperature_all_are_as_likely(saved):
    model, vocabulary = load_model(saved)
    with torch.no_grad():
        model.output.bias[0] = 1e30
    drawn = [*sample(model, vocabulary, length=100, temperature=1.7e308)]
    assert len({*drawn}) > 30


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_without_finite_logits_is_refused(value, saved):
    model, vocabulary = load_model(saved)
    with torch.no_grad():
        model.output.bias[3] = value
    with pytest.raises(FloatingPointError, match=f"checkpoint must give finite logits, got {value}"):
        sample(model, vocabulary, length=1)
