"""Small models of other packages with random weights, and what to compute with each.

A builder imports its package itself, so that a package that is not installed skips its own models only.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

F64 = torch.float64


@dataclass(frozen=True)
class Case:
    model: nn.Module
    run: Callable[[], Mapping[str, Any]]  # results by name; "loss" is the one to differentiate
    lstms: int  # modules that replace_lstm has to change
    cells: int
    training_only: tuple[str, ...] = ()  # parameters that are used only in training


def awd_lstm() -> Case:
    """A word language model: weight drop, tied embeddings, the state carried from window to window."""
    models = pytest.importorskip("fastai.text.models.core")
    config = {**models.awd_lstm_lm_config, "emb_sz": 8, "n_hid": 12}
    model = models.get_language_model(models.AWD_LSTM, 20, config)
    tokens = torch.randint(20, (3, 15))

    def run():
        model.reset()
        logits = [model(window)[0] for window in tokens[:, :-1].split(7, dim=1)]
        loss = F.cross_entropy(torch.cat(logits, 1).flatten(0, 1), tokens[:, 1:].flatten())
        return {"logits": logits, "states": model[0].hidden, "loss": loss}

    return Case(model, run, lstms=3, cells=0)


def encodec() -> Case:
    """An audio codec: LSTMs after the convolutions of its encoder and before those of its decoder."""
    modeling = pytest.importorskip("transformers.models.encodec.modeling_encodec")
    config = modeling.EncodecConfig(hidden_size=8, num_filters=4, codebook_size=16, upsampling_ratios=(4, 2))
    model = modeling.EncodecModel(config)
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()  # zeros as built, and every code the same
    audio = torch.randn(2, 1, 96)

    def run():
        codes, scales = model.encode(audio, bandwidth=3.0, return_dict=False)[:2]
        decoded = model.decode(codes, scales, return_dict=False)[0]
        # Codes are integers without a gradient, so the encoder's comes from the values before quantisation.
        loss = F.mse_loss(decoded, audio) + model.encoder(audio).square().mean()
        return {"codes": codes, "decoded": decoded, "loss": loss}

    return Case(model, run, lstms=2, cells=0)


def forecaster() -> Case:
    """A Temporal Fusion Transformer; its LSTM is a subclass that takes histories of any length, also of none."""
    forecasting = pytest.importorskip("pytorch_forecasting")
    pandas = pytest.importorskip("pandas")
    days, future = 24, 3
    columns = {"series": [name for name in "abc" for _ in range(days)], "day": [*range(days)] * 3}
    table = pandas.DataFrame(columns | {"value": torch.randn(3 * days).tolist()})
    roles = {"group_ids": ["series"], "time_idx": "day", "target": "value", "time_varying_known_reals": ["day"]}
    roles |= {"time_varying_unknown_reals": ["value"], "min_encoder_length": 0, "min_prediction_length": future}
    data = forecasting.TimeSeriesDataSet(table, **roles, max_encoder_length=8, max_prediction_length=future)
    sizes = {"hidden_size": 8, "attention_head_size": 2, "hidden_continuous_size": 4, "dropout": 0.2}
    model = forecasting.TemporalFusionTransformer.from_dataset(data, **sizes)
    # All of a series, so that its first days are among them, which have no history.
    batch, (target, _) = next(iter(data.to_dataloader(train=False, batch_size=len(data))))
    batch = torch.utils._pytree.tree_map(lambda part: part.to(F64) if part.is_floating_point() else part, batch)
    assert batch["encoder_lengths"].min() == 0

    def run():
        prediction = model(batch)["prediction"]
        return {"prediction": prediction, "loss": model.loss(prediction, target.to(F64))}

    return Case(model, run, lstms=2, cells=0)


CONLLU = """
1	The	_	DET	DT	Definite=Def	2	det	_	_
2	cats	_	NOUN	NNS	Number=Plur	3	nsubj	_	_
3	sleep	_	VERB	VBP	Tense=Pres	0	root	_	_

1	Nobody	_	PRON	NN	Number=Sing	2	nsubj	_	_
2	forecasts	_	VERB	VBZ	Tense=Pres	0	root	_	_
3	it	_	PRON	PRP	Number=Sing	2	obj	_	_
4	well	_	ADV	RB	_	2	advmod	_	_
5	.	_	PUNCT	.	_	2	punct	_	_

"""


def _tagger(rec_dropout: float, lstms: int, cells: int) -> Case:
    tagger = pytest.importorskip("stanza.models.tagger")
    data = pytest.importorskip("stanza.models.pos.data")
    trainer = pytest.importorskip("stanza.models.pos.trainer")
    conll = pytest.importorskip("stanza.utils.conll")
    flags = ["--no_pretrain", "--char_bidirectional", "--word_cutoff", "0"]
    args = tagger.parse_args([*flags, "--rec_dropout", str(rec_dropout), "--char_rec_dropout", str(rec_dropout)])
    args |= {name: 6 for name in args if name.endswith("_dim")} | {"augment_nopunct": 0.0}
    args |= {"charlm_transform_dim": None, "shorthand": "en_test"}
    sentences = data.Dataset(conll.CoNLL.conll2doc(input_str=CONLLU), args, None)
    model = trainer.Tagger(args, sentences.vocab)
    _wake(model)
    batch = next(iter(sentences.to_loader(batch_size=2)))
    inputs, _, word_orig_idx, sentlens, wordlens, text = trainer.unpack_batch(batch, "cpu")

    def run():
        loss, tags = model(*inputs, word_orig_idx, sentlens, wordlens, text)
        return {"tags": tags, "loss": loss}

    return Case(model, run, lstms, cells, training_only=("drop_replacement",))  # it replaces dropped words


def tagger() -> Case:
    """A part-of-speech tagger over words and characters: packed, bidirectional, first states that are learned."""
    return _tagger(0.0, lstms=3, cells=0)


def tagger_with_recurrent_dropout() -> Case:
    """The same, its LSTMs stepped through a packed batch by cells whose batch shrinks and grows."""
    return _tagger(0.3, lstms=0, cells=6)


def lemmatizer() -> Case:
    """Sequence to sequence with attention and beam search: an encoder over packed characters, a decoder of steps."""
    seq2seq = pytest.importorskip("stanza.models.common.seq2seq_model")
    args = {"vocab_size": 14, "emb_dim": 6, "hidden_dim": 8, "num_layers": 2, "dropout": 0.3, "emb_dropout": 0.1}
    args |= {"max_dec_len": 6, "attn_type": "soft", "copy": True}
    model = seq2seq.Seq2SeqModel(args)
    lengths = torch.tensor([7, 5, 2])
    source, target = torch.randint(4, 14, (3, 7)), torch.randint(4, 14, (3, 6))
    padding = torch.arange(7) >= lengths[:, None]

    def run():
        log_probs, _ = model(source, padding, target[:, :-1])
        with torch.no_grad():
            beams = model.predict(source, padding, beam_size=3)[0]
        loss = F.nll_loss(log_probs.flatten(0, 1), target[:, 1:].flatten())
        return {"log_probs": log_probs, "beams": beams, "loss": loss}

    return Case(model, run, lstms=1, cells=1)


def tacotron2() -> Case:
    """Text to speech: a packed bidirectional encoder, two cells and an attention for each frame."""
    with pytest.MonkeyPatch.context() as patch:
        # speechbrain imports torchaudio, which the package index has for CUDA only and which cannot be loaded beside
        # a CPU torch. Its Tacotron2 does not use it.
        patch.setitem(sys.modules, "torchaudio", ModuleType("torchaudio"))
        speechbrain = pytest.importorskip("speechbrain.lobes.models.Tacotron2")
        # Its deprecated names are imported when anything inspects the loaded modules, as hypothesis does.
        for name, module in list(sys.modules.items()):
            if type(module).__name__ == "DeprecatedModuleRedirect":
                del sys.modules[name]
    sizes = {"symbols_embedding_dim": 8, "encoder_embedding_dim": 8, "attention_rnn_dim": 10, "attention_dim": 6}
    sizes |= {"attention_location_n_filters": 4, "attention_location_kernel_size": 5, "decoder_rnn_dim": 12}
    sizes |= {"prenet_dim": 6, "postnet_embedding_dim": 8, "max_decoder_steps": 5}
    model = speechbrain.Tacotron2(n_mel_channels=4, n_symbols=20, **sizes)
    criterion = speechbrain.Loss(guided_attention_sigma=0.2)
    text, text_lengths = torch.randint(20, (2, 9)), torch.tensor([9, 6])
    mels, mel_lengths = torch.randn(2, 4, 8), torch.tensor([8, 5])
    gates = (torch.arange(8) >= mel_lengths[:, None] - 1).to(mels.dtype)

    def run():
        outputs = model((text, text_lengths, mels, 9, mel_lengths))
        with torch.no_grad():
            spoken = model.infer(text, text_lengths)
        loss = criterion(outputs, (mels, gates), text_lengths, mel_lengths, 1).loss
        return {"outputs": outputs, "spoken": spoken, "loss": loss}

    return Case(model, run, lstms=1, cells=2)


def recurrent_policy() -> Case:
    """An actor and a critic, each with its LSTM: episodes that begin in mid-sequence, and acting step by step."""
    policies = pytest.importorskip("sb3_contrib.common.recurrent.policies")
    spaces = pytest.importorskip("gymnasium.spaces")
    observation_space, action_space = spaces.Box(-1, 1, (3,)), spaces.Discrete(4)
    # With the package's own initial weights gradients are as small as the errors that assert_close allows in float32.
    sizes = {"lstm_hidden_size": 8, "ortho_init": False}
    model = policies.RecurrentActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, **sizes)
    rows, steps = 2, 6
    observations, actions = torch.rand(rows * steps, 3), torch.randint(4, (rows * steps,))
    begins = torch.tensor([[1, 0, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0]], dtype=torch.float32).flatten()
    states = [tuple(torch.randn(1, rows, 8) for _ in range(2)) for _ in range(2)]

    def run():
        training = model.training  # predict() turns it off
        values, log_prob, entropy = model.evaluate_actions(observations, actions, policies.RNNStates(*states), begins)
        loss = values.square().sum() - log_prob.sum() - entropy.sum()
        moves, state = [], None
        for seen in observations.view(steps, rows, 3).numpy():
            move, state = model.predict(seen, state)
            moves.append(move)
        model.train(training)
        return {"values": values, "log_prob": log_prob, "moves": moves, "state": state, "loss": loss}

    return Case(model, run, lstms=2, cells=0)


def _wake(model: nn.Module) -> None:
    """Randomises what a package initialises to zero, since zeros let no gradient reach the LSTMs below."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.5)


FLOAT64 = [awd_lstm, encodec, forecaster, tagger, tagger_with_recurrent_dropout, lemmatizer, tacotron2]
FLOAT32 = [recurrent_policy]  # stable-baselines3 makes observations and states float32 whatever the parameters are
