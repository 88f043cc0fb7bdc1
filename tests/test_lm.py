"""The language model: training, exact resumption, checkpoints, sampling, the command line and the demo."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from benchmarks import language_model as demo
from fusedlstm.__main__ import main
from fusedlstm.lm import (
    ByteVocabulary,
    CheckpointError,
    LanguageModel,
    TrainConfig,
    Trainer,
    WordVocabulary,
    checkpoint,
    evaluate,
    load_corpus,
    load_model,
    sample,
)
from fusedlstm.lm.console import Interrupt
from fusedlstm.lm.data import Batches
from fusedlstm.lm.train import learning_rate

ROOT = Path(__file__).parents[1]
LINES = ["to be or not to be", "that is the question", "whether it is nobler in the mind", "to suffer the slings"]
TEXT = "".join(f"{line}\n" for line in LINES * 12)
SMALL = {"embed_size": 8, "hidden_size": 12, "window": 8, "batch_size": 16, "steps": 14}
SMALL_FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small only lose by threads, the more so beside other test processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def saved(tmp_path, text):
    """A checkpoint of a short run."""
    trainer = Trainer(TrainConfig(data=(text,), **SMALL))
    trainer.run(3)
    trainer.save(tmp_path / "saved.safetensors")
    return tmp_path / "saved.safetensors"


@pytest.fixture
def saved_words(tmp_path, text):
    trainer = Trainer(TrainConfig(data=(text,), vocabulary="words", **{**SMALL, "batch_size": 4}))
    trainer.run(1)
    trainer.save(tmp_path / "words.safetensors")
    return tmp_path / "words.safetensors"


def _tensors(trainer, path):
    trainer.save(path)
    return checkpoint.load(path).tensors


def _assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


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
    _assert_same_bits(_tensors(second, tmp_path / "b"), _tensors(whole, tmp_path / "a"))


def test_runs_in_one_process_do_not_disturb_each_other(tmp_path, text):
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
    _assert_same_bits(ours.model.state_dict(), theirs.model.state_dict())
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


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_interrupted_save_keeps_the_previous_checkpoint(tmp_path, saved, monkeypatch, failing):
    before = saved.read_bytes()
    trainer = Trainer.resume(saved)
    trainer.run(5)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match=r"cannot write checkpoint .*: No space left on device; a previous one is kept"):
        trainer.save(saved)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))
    trainer.save(saved)
    assert checkpoint.load(saved).step == 5


def test_every_truncated_checkpoint_is_refused(tmp_path, saved):
    whole = saved.read_bytes()
    broken = tmp_path / "broken.safetensors"
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        broken.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="damaged or foreign"):
            checkpoint.load(broken)


def test_checkpoint_of_another_model_or_version_is_refused(tmp_path, saved):
    tensors = safetensors.torch.load_file(saved)
    with safetensors.safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    path = tmp_path / "edited.safetensors"

    safetensors.torch.save_file(tensors, path, {**metadata, "version": "2"})
    with pytest.raises(CheckpointError, match="must be of format version 1, got 2"):
        load_model(path)
    safetensors.torch.save_file({**tensors, "model.output.bias": torch.zeros(3)}, path, metadata)
    for open_checkpoint in (load_model, Trainer.resume):
        with pytest.raises(CheckpointError, match="must be whole"):
            open_checkpoint(path)


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


class _Codes(ByteVocabulary):
    def decode(self, tokens):
        return "".join(chr(token) for token in tokens)


def _run(arguments, capsys):
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = exit_.code
    return status, capsys.readouterr()


def test_train_generate_info(tmp_path, text, capsys):
    out = str(tmp_path / "model.safetensors")
    status, printed = _run(["train", "--data", text, "--out", out, *SMALL_FLAGS, "--eval-every", "5"], capsys)
    assert status == 0
    assert [line.split("  held-out")[0] for line in printed.out.splitlines()[:3]] == [
        "step 5/14",
        "step 10/14",
        "step 14/14",
    ]
    assert "step 14/14  loss" in printed.err
    status, printed = _run(["generate", out, "--prompt", "to be", "--length", "20", "--top-k", "3"], capsys)
    assert status == 0
    assert printed.out.startswith("to be")
    assert _run(["train", "--out", out, "--resume"], capsys)[1].out.startswith(f"{out} is complete at step 14")
    assert _run(["train", "--out", out, "--resume", "--steps", "16"], capsys)[0] == 0
    assert checkpoint.load(out).step == 16
    assert _run(["train", "--data", text, "--out", out, *SMALL_FLAGS, "--steps", "2", "--force"], capsys)[0] == 0
    assert checkpoint.load(out).step == 2
    assert _run(["info"], capsys)[1].out.startswith("fusedlstm")


def test_minutes_end_the_run_early(tmp_path, text, capsys):
    out = str(tmp_path / "model.safetensors")
    status, printed = _run(["train", "--data", text, "--out", out, *SMALL_FLAGS, "--minutes", "1e-9"], capsys)
    assert status == 0
    assert "time is up" in printed.out
    assert checkpoint.load(out).step == 1


ERRORS = {
    "no command": ([], "COMMAND"),
    "not a number": (["train", "--steps", "many"], "--steps: invalid int value: 'many'"),
    "negative size": (["train", "--hidden-size", "-3"], "--hidden-size must be at least 1, got -3"),
    "zero layers": (["train", "--num-layers", "0"], "--num-layers must be at least 1, got 0"),
    "dropout": (["train", "--dropout", "1"], "--dropout must be at least 0 and below 1, got 1.0"),
    "rate": (["train", "--learning-rate", "nan"], "--learning-rate must be a finite number above 0, got nan"),
    "held-out": (["train", "--held-out", "1.5"], "--held-out must be a fraction between 0 and 1, got 1.5"),
    "minutes": (["train", "--minutes", "0"], "--minutes must be above 0"),
    "eval-every": (["train", "--eval-every", "0"], "--eval-every must be at least 1, got 0"),
    "cell": (["train", "--cell", "gru"], "--cell must be one of lstm, torch, rnn, got gru"),
    "vocabulary": (["train", "--vocabulary", "chars"], "--vocabulary must be bytes or words, got chars"),
    "max-words": (["train", "--max-words", "9"], "--max-words must be left out with a vocabulary of bytes"),
    "no such text": (["train", "--data", "absent.txt"], "--data must be readable files, cannot read absent.txt"),
    "text is a folder": (["train", "--data", "."], "--data must be readable files, cannot read ."),
    "empty text": (["train", "--data", "empty.txt"], "--data must hold text, got an empty file: empty.txt"),
    "short text": (["train", "--data", "short.txt"], "--data must hold at least 2,049 training tokens"),
    "tiny text": (["train", "--data", "tiny.txt"], "--data must leave at least 2 tokens to the held-out part, got 1"),
    "out exists": (["train", "--out", "saved.safetensors"], "--out must not exist yet, got saved.safetensors"),
    "out nowhere": (["train", "--out", "absent/model"], "--out must be a file in a folder that exists"),
    "out is a folder": (["train", "--out", "."], "--out must be a file in a folder that exists"),
    "nothing to resume": (["train", "--out", "absent", "--resume"], "--resume must find a checkpoint in --out"),
    "resume and force": (["train", "--resume", "--force"], "--force: not allowed with argument --resume"),
    "resume foreign": (["train", "--out", "foreign.safetensors", "--resume"], "safetensors file of something else"),
    "resume garbage": (["train", "--out", "short.txt", "--resume"], "damaged or foreign file: short.txt"),
    "resume other size": (
        ["train", "--out", "saved.safetensors", "--resume", "--hidden-size", "32"],
        "--hidden-size must be 12 as in the checkpoint saved.safetensors, got 32",
    ),
    "resume other vocabulary": (
        ["train", "--out", "saved.safetensors", "--resume", "--vocabulary", "words"],
        "--vocabulary must be bytes as in the checkpoint saved.safetensors, got words",
    ),
    "resume other text": (
        ["train", "--out", "saved.safetensors", "--resume", "--data", "other.txt"],
        "--data must be the text that saved.safetensors was trained on",
    ),
    "generate from nothing": (["generate", "absent"], "cannot read absent"),
    "generate from text": (["generate", "short.txt"], "damaged or foreign file: short.txt"),
    "generate from foreign": (["generate", "foreign.safetensors"], "safetensors file of something else"),
    "length": (["generate", "saved.safetensors", "--length", "-1"], "--length must be at least 0, got -1"),
    "temperature": (["generate", "saved.safetensors", "--temperature", "0"], "--temperature must be a finite number"),
    "top-k": (["generate", "saved.safetensors", "--top-k", "0"], "--top-k must be at least 1, got 0"),
    "seed": (["generate", "saved.safetensors", "--seed", "-1"], "--seed must be at least 0"),
    "unknown word": (["generate", "words.safetensors", "--prompt", "to hurry"], "got 'hurry'; write <unk> for it"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_error_is_one_line_and_nothing_is_overwritten(case, tmp_path, saved, saved_words, text, monkeypatch, capsys):
    arguments, message = ERRORS[case]
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text(TEXT[:300])
    (tmp_path / "tiny.txt").write_text("tiny text")
    (tmp_path / "other.txt").write_text(TEXT + TEXT)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    status, printed = _run(arguments, capsys)
    assert status == 2
    assert printed.out == ""
    assert printed.err.startswith("fusedlstm: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def _start(arguments, **options):
    # One thread, so that the run is the same as one in this process.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def test_ctrl_c_saves_and_resume_finishes_the_same_run(tmp_path, text, capsys):
    out = tmp_path / "model.safetensors"
    flags = ["train", "--data", text, "--out", str(out), *SMALL_FLAGS, "--dropout", "0.2", "--steps", "1000000"]
    process = _start(["-m", "fusedlstm", *flags])
    try:
        while "step 1/" not in (line := process.stderr.readline()):
            assert line, "the run ended before its first step"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert output == ""
    step = checkpoint.load(out).step
    assert 0 < step < 1_000_000
    assert f"interrupted; saved step {step} of 1000000 to {out}, go on with: python -m fusedlstm train" in errors

    interrupted = Trainer.resume(out)
    interrupted.run(step + 3)
    whole = Trainer(interrupted.config)
    whole.run(step + 3)
    assert interrupted.losses == whole.losses


def test_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("package", ["safetensors", "tqdm"])
def test_missing_package_is_named_with_its_remedy(package):
    code = (
        f"import sys; sys.modules['{package}'] = None; from fusedlstm.__main__ import main; sys.exit(main(['train']))"
    )
    process = _start(["-c", code])
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output == ""
    assert errors == (
        f"fusedlstm: error: fusedlstm.lm needs the package {package}; install it with: pip install fusedlstm[lm]\n"
    )


@pytest.fixture
def demo_flags(tmp_path, text):
    flags = ["--embed-size", "8", "--hidden-size", "12", "--window", "8", "--batch-size", "16", "--steps", "45"]
    return ["--data", text, "--out", str(tmp_path / "demo"), *flags]


def test_demo_writes_its_files_and_starts_over_when_complete(tmp_path, demo_flags, capsys):
    assert demo.main(demo_flags) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "loss.png",
        "lstm.safetensors",
        "torch.safetensors",
    ]
    assert printed.count("held-out") == 2
    assert "x as fast as nn.LSTM" in printed
    assert demo.main(demo_flags) == 0
    assert "is complete: starting over" in capsys.readouterr().out


def test_demo_stops_on_ctrl_c_and_goes_on(tmp_path, demo_flags, monkeypatch, capsys):
    train_step = Trainer.train_step

    def step_and_interrupt(self):
        loss = train_step(self)
        if self.step == 27:
            signal.raise_signal(signal.SIGINT)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_and_interrupt)
        assert demo.main(demo_flags) == 130
    assert "run the same command again to go on" in capsys.readouterr().out
    steps = {cell: checkpoint.load(tmp_path / "demo" / f"{cell}.safetensors").step for cell in demo.CELLS}
    assert steps == {"lstm": 27, "torch": 20}
    with pytest.raises(ValueError, match="options must be those of the unfinished run"):
        demo.main([*demo_flags, "--seed", "5"])
    assert demo.main(demo_flags) == 0
    assert "going on from step 27" in capsys.readouterr().out
    resumed = {cell: checkpoint.load(tmp_path / "demo" / f"{cell}.safetensors").tensors for cell in demo.CELLS}
    assert demo.main([*demo_flags, "--fresh"]) == 0
    for cell, tensors in resumed.items():
        _assert_same_bits(checkpoint.load(tmp_path / "demo" / f"{cell}.safetensors").tensors, tensors)


def test_demo_reports_models_that_differ(demo_flags, monkeypatch, capsys):
    train_step = Trainer.train_step

    def spoil(self):
        if self.config.cell == "lstm" and self.step == 10:
            with torch.no_grad():
                self.model.recurrent.bias_hh_l0.mul_(1.05)
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", spoil)
    assert demo.main(demo_flags) == 1
    assert "differ by more than rounding" in capsys.readouterr().out
