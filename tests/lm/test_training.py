"""The language model: data, training, exact resumption, evaluation, checkpoints, sampling."""

import math

import pytest
import torch
from small import SMALL, TEXT, assert_same_bits, saved_tensors

from fusedlstm.lm import (
    ByteVocabulary,
    LanguageModel,
    TrainConfig,
    Trainer,
    WordVocabulary,
    evaluate,
    load_corpus,
    load_model,
    sample,
)
from fusedlstm.lm.data import Batches
from fusedlstm.lm.train import learning_rate


class _Codes(ByteVocabulary):
    def pieces(self, tokens):
        return map(chr, tokens)


def test_windows_continue_each_other_and_targets_are_one_ahead():
    batches = Batches(torch.arange(24), window=3, batch_size=2)
    x, target = zip(*(batches[index] for index in range(len(batches))), strict=True)
    assert torch.cat(x).t().tolist() == [list(range(9)), list(range(11, 20))]
    assert torch.equal(torch.cat(target), torch.cat(x) + 1)
    assert len(Batches(torch.arange(24), window=3, batch_size=2, drop_last=False)) == 4


def test_words_come_back_and_unknown_ones_become_unk():
    vocabulary = WordVocabulary.build(TEXT.encode())
    assert vocabulary.words[:2] == ("<unk>", "\n")
    assert vocabulary.decode(vocabulary.encode(TEXT.encode()).tolist()) == TEXT
    assert vocabulary.decode(vocabulary.encode(b"to  be\n\nor hurry\n").tolist()) == "to be\n\nor <unk>\n"
    assert vocabulary.unknown(b"to hurry") == ["hurry"]
    assert WordVocabulary.build(TEXT.encode(), max_words=2).words == ("<unk>", "\n", "the", "to")  # both thrice a verse


def test_bytes_come_back_whatever_they_are():
    vocabulary = ByteVocabulary()
    assert bytes(vocabulary.encode(bytes(range(256))).tolist()) == bytes(range(256))
    assert vocabulary.decode([104, 105, 0xFF]) == "hi\N{REPLACEMENT CHARACTER}"


def test_words_are_learnt_from_the_training_part_only(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("seen " * 90 + "unseen " * 10)
    corpus = load_corpus((str(path),), "words", held_out=72 / 520)  # inside the last "seen"
    assert corpus.vocabulary.words == ("<unk>", "\n", "seen")
    assert corpus.train.tolist() == [2] * 90
    assert corpus.held_out.tolist() == [0] * 10
    assert corpus.held_out_bytes == 70


def test_default_text_is_the_standard_library():
    corpus = load_corpus()
    assert "\ndef " in corpus.vocabulary.decode(corpus.train[:100_000].tolist())
    assert corpus.digest == load_corpus().digest


def test_loss_falls_on_learnable_text(text):
    config = TrainConfig(data=(text,), **{**SMALL, "hidden_size": 48, "steps": 150, "learning_rate": 0.02})
    trainer = Trainer(config)
    before = trainer.evaluate()
    history = trainer.run()
    assert [step for step, _ in history] == list(range(1, 151))
    assert trainer.losses[0] > 5
    assert trainer.losses[-1] < 1
    assert trainer.evaluate().bits_per_byte < 3 < before.bits_per_byte


def test_learning_rate_warms_up_and_decays_to_a_tenth():
    rates = [learning_rate(step, 1000, 2.0) for step in range(1000)]
    assert rates[:2] == [0.04, 0.08]
    assert max(rates) == rates[50] == 2.0
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] == pytest.approx(0.2, rel=1e-3)


def test_state_is_carried_within_an_epoch_and_reset_between(text, monkeypatch):
    trainer = Trainer(TrainConfig(data=(text,), **SMALL))
    epoch = len(trainer._batches)
    carried = []
    forward = LanguageModel.forward
    monkeypatch.setattr(
        LanguageModel, "forward", lambda self, x, hx: (carried.append(hx is not None), forward(self, x, hx))[1]
    )
    trainer.run(epoch + 2)
    assert carried == [False] + [True] * (epoch - 1) + [False, True]


@pytest.mark.parametrize("cell", ["lstm", "torch", "rnn"])
@pytest.mark.parametrize("pause", [1, 5, "epoch"])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(tmp_path, text, cell, pause):
    config = TrainConfig(data=(text,), cell=cell, num_layers=2, dropout=0.3, **SMALL)
    whole = Trainer(config)
    pause = len(whole._batches) if pause == "epoch" else pause
    assert pause < len(whole._batches) + 1 < config.steps
    whole.run()

    first = Trainer(config)
    first.run(pause)
    first.save(tmp_path / "run.safetensors")
    torch.manual_seed(12345)  # the run must not depend on the process's random state
    second = Trainer.resume(tmp_path / "run.safetensors")
    second.run()
    assert second.losses == whole.losses
    assert_same_bits(saved_tensors(second, tmp_path / "b"), saved_tensors(whole, tmp_path / "a"))


def test_runs_in_one_process_do_not_affect_each_other(tmp_path, text):
    config = TrainConfig(data=(text,), dropout=0.3, **SMALL)
    alone, one, other = Trainer(config), Trainer(config), Trainer(config)
    alone.run(6)
    for step in range(1, 7):
        one.run(step)
        one.model.eval()  # as for a sample in mid-run
        torch.rand(step)
        other.run(step)
    assert one.losses == other.losses == alone.losses


def test_lstm_and_torch_cells_are_the_same_model(text):
    config = {"data": (text,), "num_layers": 2, "dropout": 0.2, **SMALL}
    ours, theirs = (Trainer(TrainConfig(cell=cell, **config)) for cell in ("lstm", "torch"))
    assert_same_bits(ours.model.state_dict(), theirs.model.state_dict())
    ours.run()
    theirs.run()
    assert len(set(theirs.losses)) == len(theirs.losses)
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-5, atol=0)


def test_seed_changes_the_run(text):
    first, second = (Trainer(TrainConfig(data=(text,), seed=seed, **SMALL)) for seed in (0, 1))
    assert first.run(1) != second.run(1)


def test_gradient_is_clipped(text):
    trainer = Trainer(TrainConfig(data=(text,), clip=1e-3, **SMALL))
    trainer.run(1)
    norm = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)


def test_diverging_run_says_so(text):
    trainer = Trainer(TrainConfig(data=(text,), **SMALL))
    with torch.no_grad():
        trainer.model.output.bias[0] = math.inf
    with pytest.raises(FloatingPointError, match=r"at step 1 with 0\.003; choose a smaller one"):
        trainer.run()


def test_evaluation_of_a_uniform_model():
    model = LanguageModel(10, 4, 6, 1)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    result = evaluate(model, torch.arange(50) % 10, text_bytes=200, window=7, batch_size=4)
    assert result.nats_per_token == pytest.approx(math.log(10))
    assert result.perplexity == pytest.approx(10)
    assert result.bits_per_byte == pytest.approx(math.log2(10) * 50 / 200)


def test_evaluation_counts_every_token_once():
    torch.manual_seed(0)
    model = LanguageModel(10, 4, 6, 1, dropout=0.5)
    tokens = torch.randint(10, (30,))
    logits, _ = model.eval()(tokens[:-1, None])
    by_hand = -sum(logits[t, 0].log_softmax(0)[tokens[t + 1]].item() for t in range(29)) / 29
    model.train()
    result = evaluate(model, tokens, text_bytes=30, window=8, batch_size=1)  # windows of 8, 8, 8 and 5
    assert result.nats_per_token == pytest.approx(by_hand, rel=1e-6)
    assert result.bits_per_byte == pytest.approx(by_hand / math.log(2))
    assert model.training


def test_sampling_is_reproducible(saved):
    model, vocabulary = load_model(saved)
    first = sample(model, vocabulary, "to be", length=40, seed=3)
    assert first.startswith("to be")
    assert sample(model, vocabulary, "to be", length=40, seed=3) == first
    assert sample(model, vocabulary, "to be", length=40, seed=4) != first


def test_top_k_one_is_the_greedy_choice_from_the_whole_prefix_on_a_new_line(saved_words):
    model, vocabulary = load_model(saved_words)
    tokens = vocabulary.encode(b"\nto be").long()
    with torch.no_grad():
        for _ in range(10):
            logits, _ = model(tokens[:, None])
            tokens = torch.cat([tokens, logits[-1, 0].argmax().view(1)])
    assert sample(model, vocabulary, "to be", length=10, top_k=1, seed=9) == vocabulary.decode(tokens.tolist()[1:])


def test_low_temperature_and_top_k_narrow_the_choice(saved):
    model, _ = load_model(saved)
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.copy_(torch.arange(256) / 10)  # always the same distribution, best at 255
    draws = {
        name: set(sample(model, _Codes(), "a", length=200, **options)[1:])
        for name, options in {"all": {}, "top 3": {"top_k": 3}, "cold": {"temperature": 0.005}}.items()
    }
    assert draws["cold"] == {chr(255)}
    assert draws["top 3"] == {chr(253), chr(254), chr(255)}
    assert len(draws["all"]) > 10


def test_a_run_on_a_gpu_goes_on_from_its_checkpoint_and_learns_what_one_on_the_cpu_learns(cuda, tmp_path, text):
    config = TrainConfig(data=(text,), **SMALL)
    whole, half, of_cpu = Trainer(config, cuda), Trainer(config, cuda), Trainer(config)
    whole.run()
    half.run(config.steps // 2)
    half.save(tmp_path / "half")
    resumed = Trainer.resume(tmp_path / "half", cuda)
    resumed.run()
    of_cpu.run()
    assert resumed.losses == whole.losses
    torch.testing.assert_close(torch.tensor(whole.losses), torch.tensor(of_cpu.losses), rtol=0.02, atol=0)
