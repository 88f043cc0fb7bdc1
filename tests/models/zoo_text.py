"""Models of text: language models, taggers, translation."""

from types import SimpleNamespace

import pytest
import torch
from building import F64, Case, import_module, wake
from torch.nn import functional as F


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
    wake(model)
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


def translator() -> Case:
    """A packed encoder and a decoder with attention whose first state, and whose initial weights, go by its class."""
    without = ["importlib_metadata", "subword_nmt", "torch.utils.tensorboard"]  # for tokens and logs
    models = import_module("joeynmt.model", without=without)
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
