"""Small models of other packages with random weights, and what to compute with each.

A builder imports its package itself, so that a package that is not installed skips its own models only.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

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
    # The package index has torchaudio for CUDA only, and that cannot be loaded beside a CPU torch.
    speechbrain = _import("speechbrain.lobes.models.Tacotron2", without=["torchaudio"])
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


def rollout_module() -> Case:
    """An agent's LSTM: rows that hold several episodes are cut where one begins and packed; acting goes by steps."""
    modules = pytest.importorskip("torchrl.modules")
    tensordict = pytest.importorskip("tensordict")
    names = {"in_keys": ["seen", "h", "c"], "out_keys": ["features", ("next", "h"), ("next", "c")]}
    model = modules.LSTMModule(input_size=3, hidden_size=5, num_layers=2, dropout=0.2, **names)
    rows, steps = 2, 6
    begins = torch.tensor([[1, 0, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0]], dtype=torch.bool)[..., None]
    states = {name: torch.randn(rows, steps, 2, 5) for name in ("h", "c")}
    data = tensordict.TensorDict({"seen": torch.randn(rows, steps, 3), "is_init": begins, **states}, [rows, steps])

    def run():
        with modules.set_recurrent_mode(True):
            batch = model(data.clone())
        acted, carried = [], data[:, 0].select("h", "c")
        with torch.no_grad():
            for step in data.select("seen", "is_init").unbind(1):
                acted.append(model(step.clone().update(carried)))
                carried = acted[-1]["next"]
        original = model.lstm
        kept = model.make_cudnn_based().lstm is original  # it makes a new nn.LSTM of anything that is none
        tensors = {"batch": batch.to_dict(), "acted": [step.to_dict() for step in acted]}
        return {**tensors, "kept": kept, "loss": batch["features"].square().sum()}

    return Case(model, run, lstms=1, cells=0)


def locomotion_actor() -> Case:
    """A robot's policy: padded episodes with their first states, acting step by step, and both kinds of export."""
    writers = ["rsl_rl.utils.neptune_log_writer", "rsl_rl.utils.wandb_log_writer"]  # of logs, by tensorboard
    models = _import("rsl_rl.models", without=writers)
    utils = pytest.importorskip("rsl_rl.utils")
    tensordict = pytest.importorskip("tensordict")
    robots, steps, layers, hidden = 2, 6, 2, 6
    seen = tensordict.TensorDict({"policy": torch.randn(steps, robots, 3)}, [steps, robots])
    sizes = {"hidden_dims": [8], "rnn_hidden_dim": hidden, "rnn_num_layers": layers}
    noise = {"class_name": "rsl_rl.modules.distribution:GaussianDistribution"}
    model = models.RNNModel(seen[0], {"actor": ["policy"]}, "actor", 2, distribution_cfg=noise, **sizes)
    torch.distributions.Distribution.set_default_validate_args(True)  # the package turns it off for everybody
    dones = torch.tensor([[0, 0], [0, 1], [0, 0], [1, 1], [0, 0], [0, 0]])
    episodes, masks = utils.split_and_pad_trajectories(seen, dones[..., None])
    starts = tuple(torch.randn(layers, episodes.shape[1], hidden) for _ in range(2))
    actions = torch.randn(steps, robots, 2)

    def run():
        model(episodes, masks, starts, stochastic_output=True)
        loss = -model.get_output_log_prob(actions).sum()
        model.reset()
        acted, jitted, onnx = [], [], []
        script, graph = model.as_jit(), model.as_onnx()
        states = tuple(torch.zeros(layers, 1, hidden) for _ in range(2))
        with torch.no_grad():
            for now, done in zip(seen, dones, strict=True):
                acted.append(model(now))
                model.reset(done)
                jitted.append(script(now["policy"][:1]))
                action, *states = graph(now["policy"][:1], *states)
                onnx.append(action)
        mean, state = model.output_mean.detach(), model.get_hidden_state()
        model.reset()
        return {"mean": mean, "acted": acted, "state": state, "jit": jitted, "onnx": onnx, "loss": loss}

    return Case(model, run, lstms=1, cells=0)


def q_function() -> Case:
    """A sequence of layers that finds its recurrent ones by their class; each episode's state is its own."""
    pfrl = _import("pfrl", without=["pfrl.wrappers"])  # they need gym
    recurrent = pytest.importorskip("pfrl.utils.recurrent")
    lstms = [nn.LSTM(6, 5, num_layers=2), nn.LSTM(4, 3)]
    model = pfrl.nn.RecurrentSequential(nn.Linear(3, 6), nn.ReLU(), lstms[0], nn.Linear(5, 4), lstms[1])
    episodes = [torch.randn(length, 3) for length in (5, 4, 2)]
    now = torch.randn(4, 3, 3)

    def run():
        values, state = recurrent.pack_and_forward(model, episodes, None)
        acted = []
        with torch.no_grad():
            for seen in now:
                action, state = recurrent.one_step_forward(model, seen, state)
                state = recurrent.mask_recurrent_state_at(state, 1)
                states = [recurrent.get_recurrent_state_at(state, n, detach=True) for n in (2, 0)]
                state = recurrent.concatenate_recurrent_states([*states, None])
                acted.append(action)
        return {"values": values, "acted": acted, "state": state, "loss": values.square().sum()}

    return Case(model, run, lstms=2, cells=0)


def translator() -> Case:
    """A packed encoder and a decoder with attention whose first state, and whose initial weights, go by its class."""
    without = ["importlib_metadata", "subword_nmt", "torch.utils.tensorboard"]  # for tokens and logs
    models = _import("joeynmt.model", without=without)
    search = pytest.importorskip("joeynmt.search")
    vocabulary = pytest.importorskip("joeynmt.vocabulary")
    initialization = pytest.importorskip("joeynmt.initialization")
    special = {"unk": 0, "pad": 1, "bos": 2, "eos": 3}
    tokens = {f"{name}_token": f"<{name}>" for name in special} | {f"{name}_id": i for name, i in special.items()}
    words = vocabulary.Vocabulary([*"abcdefgh"], SimpleNamespace(**tokens, lang_tags=[], sep_token=None))
    part = {"type": "recurrent", "rnn_type": "lstm", "hidden_size": 6, "num_layers": 2, "dropout": 0.2}
    part["embeddings"] = {"embedding_dim": 5}
    config = {"encoder": part, "decoder": {**part, "init_hidden": "bridge"}, "bias_initializer": "uniform"}
    config |= {"init_rnn_orthogonal": True, "lstm_forget_gate": 0.7}
    model = models.build_model(config, words, words)
    model.loss_function = "crossentropy", 0.0
    lengths = torch.tensor([7, 5, 2])
    source, target = torch.randint(4, len(words), (3, 7)), torch.randint(4, len(words), (3, 6))
    source[torch.arange(7) >= lengths[:, None]] = words.pad_index
    source_mask = (source != words.pad_index)[:, None]
    inputs = {"src": source, "src_length": lengths, "src_mask": source_mask}
    outputs = {"trg": target[:, 1:], "trg_input": target[:, :-1], "trg_mask": torch.ones(3, 1, 5, dtype=torch.bool)}

    def run():
        initialization.initialize_model(model, config, words.pad_index, words.pad_index)
        loss, log_probs, attention, _ = model(return_type="loss", **inputs, **outputs)
        with torch.no_grad():
            encoded, last, _, _ = model(return_type="encode", **inputs)
            greedy = search.greedy(source_mask, 5, model, encoded, last, return_prob="hyp")
            beams = search.beam_search(model, 3, encoded, last, source_mask, 5, 1.0)[0]
        return {"log_probs": log_probs, "attention": attention, "greedy": greedy, "beams": beams, "loss": loss}

    return Case(model, run, lstms=2, cells=0)


def scored_language_model() -> Case:
    """A language model for beam search, which stacks the states of beams and takes them apart by their LSTM's class."""
    lm = pytest.importorskip("espnet2.lm.seq_rnn_lm")
    model = lm.SequentialRNNLM(12, unit=6, nlayers=2, dropout_rate=0.2, tie_weights=True)
    tokens = torch.randint(1, 12, (3, 7))

    def run():
        logits, _ = model(tokens[:, :-1], None)
        h, c = (part.to(F64) for part in model.zero_state())
        states, scores = [(h, c)] * len(tokens), []
        with torch.no_grad():
            for length in range(1, 5):
                score, states = model.batch_score(tokens[:, :length], states, None)
                states = [states[2], states[0], states[0]]
                scores.append(score)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        return {"logits": logits, "scores": scores, "states": states, "loss": loss}

    return Case(model, run, lstms=1, cells=0)


def prosody_predictor() -> Case:
    """Durations, pitch and loudness of speech: bidirectional LSTMs between layers that depend on a speaker's style."""
    # Its package begins with what fetches weights and writes logs, and names a text model of transformers.
    without = ["kokoro.model", "kokoro.pipeline", "loguru", "transformers"]
    modules = _import("kokoro.modules", without=without)
    style_size, size, symbols, frames = 4, 8, 7, 9
    text_encoder = modules.TextEncoder(channels=size, kernel_size=3, depth=1, n_symbols=12)
    model = nn.ModuleList([text_encoder, modules.ProsodyPredictor(style_size, size, nlayers=2, max_dur=5, dropout=0.2)])
    lengths = torch.tensor([4, symbols, 6])
    padding = torch.arange(symbols) >= lengths[:, None]
    text, style = torch.randint(12, (3, symbols)), torch.randn(3, style_size)
    alignment = torch.rand(3, symbols, frames)

    def run():
        encoder, predictor = model
        encoded = encoder(text, lengths, padding)
        durations, aligned = predictor(encoded, style, lengths, alignment, padding)
        pitch, loudness = predictor.F0Ntrain(aligned, style)
        loss = sum(part.square().mean() for part in (durations, pitch, loudness))
        return {"encoded": encoded, "durations": durations, "pitch": pitch, "loudness": loudness, "loss": loss}

    return Case(model, run, lstms=5, cells=0)


def image_classifier() -> Case:
    """A Sequencer: LSTMs along the rows and the columns of an image; its initial weights go by the class of a layer."""
    parts = ["datasets", "ops", "ops.misc", "transforms", "transforms.functional"]
    without = ["torchvision", *(f"torchvision.{part}" for part in parts)]  # for images, of which this needs none
    sequencer = _import("timm.models.sequencer", without=without)
    sizes = {"layers": (1, 1), "patch_sizes": (4, 2), "embed_dims": (8, 12), "hidden_sizes": (4, 6)}
    model = sequencer.Sequencer2d(num_classes=5, mlp_ratios=(2.0, 2.0), drop_path_rate=0.1, **sizes)
    images, classes = torch.randn(2, 3, 16, 24), torch.tensor([3, 0])

    def run():
        model.init_weights()
        _wake(model)
        logits = model(images)
        return {"logits": logits, "loss": F.cross_entropy(logits, classes)}

    return Case(model, run, lstms=4, cells=0)


def text_recogniser() -> Case:
    """A reader of lines of text in images: convolutions, then two bidirectional LSTMs over their columns."""
    # Its package begins with what reads files and finds the lines.
    recogniser = _import("easyocr.model.vgg_model", without=["easyocr.easyocr", "torchvision"])
    model = recogniser.Model(input_channel=1, output_channel=16, hidden_size=6, num_class=10)
    lines, text, lengths = torch.randn(3, 1, 32, 48), torch.randint(1, 10, (3, 4)), torch.tensor([4, 2, 3])

    def run():
        logits = model(lines, None)
        steps = torch.full((3,), logits.shape[1])
        loss = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), text, steps, lengths)
        return {"logits": logits, "loss": loss}

    return Case(model, run, lstms=2, cells=0)


def streamflow() -> Case:
    """A river's discharge from weather and its basin; a twin, which shows every gate, takes over the LSTM's weights."""
    # They read data sets, with xarray, and draw samples, with numba.
    without = ["neuralhydrology.datautils.utils", "neuralhydrology.utils.samplingutils"]
    custom = _import("neuralhydrology.modelzoo.customlstm", without=without)
    weather, basin, days = ["rain", "warmth"], ["area", "slope", "height"], 8
    settings = {"dynamic_inputs": weather, "static_attributes": basin, "target_variables": ["discharge"]}
    settings |= {"model": "cudalstm", "hidden_size": 6, "initial_forget_bias": 3, "output_dropout": 0.2}
    settings |= {"head": "regression"}
    settings |= {"statics_embedding": {"type": "fc", "hiddens": [4], "activation": "tanh", "dropout": 0.0}}
    config = custom.Config(settings)
    model, twin = custom.CudaLSTM(config), custom.CustomLSTM(config).to(F64)
    data = {"x_d": {name: torch.randn(3, days, 1) for name in weather}, "x_s": torch.randn(3, len(basin))}
    measured = torch.randn(3, days, 1)

    def run():
        predicted = model(data)
        with torch.no_grad():
            twin.copy_weights(model)
            seen = twin.train(model.training)(data)
        return {"predicted": predicted, "seen": seen, "loss": F.mse_loss(predicted["y_hat"], measured)}

    return Case(model, run, lstms=1, cells=0)


def _import(name: str, without: list[str]) -> ModuleType:
    """Imports a module while mocks stand in for others, which its package imports too and its model does not use."""
    with pytest.MonkeyPatch.context() as patch:
        for each in without:
            patch.setitem(sys.modules, each, MagicMock())
        return pytest.importorskip(name)


def _wake(model: nn.Module) -> None:
    """Randomises what a package initialises to zero, since zeros let no gradient reach the LSTMs below."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.5)


FLOAT64 = [
    awd_lstm,
    encodec,
    forecaster,
    tagger,
    tagger_with_recurrent_dropout,
    lemmatizer,
    tacotron2,
    rollout_module,
    locomotion_actor,
    q_function,
    translator,
    scored_language_model,
    prosody_predictor,
    image_classifier,
    text_recogniser,
    streamflow,
]
FLOAT32 = [recurrent_policy]  # stable-baselines3 makes observations and states float32 whatever the parameters are
