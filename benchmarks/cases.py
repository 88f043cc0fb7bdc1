"""What is measured: named shapes with their origin, modes and precisions."""

import random
from dataclasses import dataclass, replace
from typing import Any

import torch

# "float32" follows the device's default (TF32 on a GPU); "ieee" is float32 without TF32, a GPU's alone.
DTYPES = {
    "float32": torch.float32,
    "ieee": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

MODES = {
    "inference": "forward without gradients",
    "forward": "forward that keeps what a backward pass needs",
    "backward": "backward alone",
    "training": "forward and backward",
    "lm_step": "a whole step of the language model: embedding, LSTM, linear layer, loss, backward, clipping, Adam",
}


FORMS = {
    "padded": "a batch of equal lengths",
    "packed": "a PackedSequence",
    "cell": "an LSTMCell, called once a step",
    "alternating": "layers of one direction each, every second one from the end to the start",
    "resets": "a batch of equal lengths in which episodes end",
}


@dataclass(frozen=True)
class Case:
    """One LSTM and its input: T steps, N rows, I features, H hidden units, L layers, D directions, P outputs of a
    projection (0: none); V is the vocabulary of a language model, in which `lm_step` is measured too. `form` is one of
    FORMS; `lengths` has the steps of each row of a packed batch; `resets` is the share of the steps before which an
    episode ended. `modes` and `dtypes` are those that its users run, all where there are none."""

    name: str
    T: int
    N: int
    I: int
    H: int
    L: int = 1
    D: int = 1
    P: int = 0
    V: int = 0
    origin: str = ""
    form: str = "padded"
    lengths: tuple[int, ...] = ()
    resets: float = 0.0
    modes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()

    @property
    def row_steps(self) -> int:
        """Steps of all rows together."""
        return sum(self.lengths) if self.form == "packed" else self.T * self.N

    @property
    def outputs(self) -> int:
        """Values a direction puts out in a step."""
        return self.P or self.H

    def toy(self) -> "Case":
        """The same kind of case at a size for tests."""
        few = {"T": min(self.T, 3), "N": min(self.N, 2), "I": min(self.I, 5), "H": min(self.H, 8)}
        lengths = tuple(min(length, few["T"]) for length in self.lengths[: few["N"]])
        few |= {"L": min(self.L, 2), "P": min(self.P, 3), "V": min(self.V, 11)}
        return replace(self, **few, lengths=lengths, resets=0.5 if self.resets else 0.0)


_CASES = [
    # Language models.
    Case("lm_200", 35, 20, 200, 200, L=2, V=10_000, origin="pytorch/examples word_language_model, its defaults"),
    Case("lm_medium", 35, 20, 650, 650, L=2, V=10_000, origin="Zaremba et al. 2014, medium"),
    Case("lm_large", 35, 20, 1500, 1500, L=2, V=10_000, origin="Zaremba et al. 2014, large"),
    Case("awd_lstm", 70, 80, 400, 1150, L=3, origin="Merity et al. 2017, AWD-LSTM on Penn Treebank (all layers 1150)"),
    Case("lm_2048", 128, 64, 2048, 2048, L=2, origin="Jozefowicz et al. 2016, in the size of a present GPU"),
    Case("lm_char", 100, 32, 128, 512, L=2, V=256, origin="characters or bytes, Karpathy's char-rnn"),
    # Speech.
    Case("speech_encoder", 400, 16, 320, 320, L=5, D=2, origin="bidirectional encoders of LAS and CTC systems"),
    Case("rnnt_prediction", 32, 8, 640, 2048, L=2, P=640, origin="He et al. 2019, prediction network of an RNN-T"),
    # Reinforcement learning, forecasting, long sequences.
    Case("rl_policy", 256, 2048, 128, 128, origin="pytorch/rl, its benchmark of LSTM backends"),
    Case("rl_rollout", 32, 2048, 128, 128, origin="the same over a shorter rollout"),
    Case("forecast", 168, 64, 32, 64, L=2, origin="a week of hours, as in DeepAR-like models"),
    Case("long_768", 1024, 16, 768, 768, origin="FlashRNN paper (Pöppel et al. 2024), its H100 figure"),
    Case("long_768_b1", 1024, 1, 768, 768, origin="the same, one sequence"),
    Case("long_8192", 8192, 4, 768, 768, origin="audio and log streams"),
    # One sequence or one step at a time.
    Case("sequence_128", 100, 1, 128, 128, origin="one sequence, small"),
    Case("sequence_512", 100, 1, 512, 512, origin="one sequence"),
    Case("batch_256", 128, 16, 256, 256, origin="a small batch"),
    Case("batch_512", 256, 64, 512, 512, origin="a middle-sized batch"),
    Case("stream_128", 1, 1, 128, 128, origin="one step of one stream, small"),
    Case("stream_512", 1, 1, 512, 512, origin="one step of one stream"),
    Case("stream_512_b32", 1, 32, 512, 512, origin="one step of 32 streams"),
    Case("stream_512_b64", 1, 64, 512, 512, origin="one step of 64 streams"),
]


def _packed(name: str, lengths: list[int], origin: str) -> Case:
    return Case(name, max(lengths), len(lengths), 32, 64, D=2, origin=origin, form="packed", lengths=tuple(lengths))


def _cell(N: int, H: int) -> Case:
    return Case(f"cell_{H}_b{N}", 30, N, H // 2, H, origin="a cell in a loop of the user's own", form="cell")


# Not a padded batch.
PACKED_AND_CELLS = [
    _packed("packed_even", [100] * 64, "sentences or utterances sorted into batches by length"),
    _packed("packed_uniform", [random.Random(0).randint(1, 200) for _ in range(64)], "the same, unsorted"),
    _packed("packed_one_long", [1000] + [4] * 511, "words as letters, or user histories: one long among many short"),
    *(_cell(N, H) for H in (128, 512) for N in (1, 16)),
]


_INFERENCE, _FLOAT32, _16_BIT = ("inference",), ("float32",), ("bfloat16", "float16")


def _user(name: str, T: int, N: int, I: int, H: int, origin: str, **other: Any) -> Case:
    return Case(name, T, N, I, H, **{"dtypes": _FLOAT32, "origin": origin} | other)


def _resets(name: str, T: int, N: int, I: int, H: int, origin: str, dtypes: tuple[str, ...] = _FLOAT32) -> list[Case]:
    """The same sizes with no reset, and with one before 1 and 10 % of the steps."""
    return [
        Case(f"{name}_r{percent}", T, N, I, H, origin=origin, form="resets", resets=percent / 100, dtypes=dtypes)
        for percent in (0, 1, 10)
    ]


def _basecaller(name: str, N: int, H: int, modes: tuple[str, ...] = ()) -> Case:
    origin = f"bonito and dorado, the {name} models of nanopore reads: chunks of 10,000 samples at a stride of 5"
    name = f"basecall_{name}_n{N}"
    return Case(name, 2000, N, H, H, L=5, origin=origin, form="alternating", modes=modes, dtypes=_16_BIT)


_ISAAC = ("float32", "bfloat16")
_TRANSDUCER = "NeMo, parakeet in transformers: a step of the prediction network while decoding"

# What users of LSTMs run, each at sizes of theirs.
USERS = [
    _user("floodhub_hindcast", 365, 512, 40, 512, "google-research/flood-forecasting: the LSTM of the past"),
    _user("floodhub_forecast", 372, 512, 552, 512, "the same: the LSTM of the forecast"),
    _user("hydrology_128", 365, 256, 32, 128, "neuralhydrology, its configuration of 531 basins"),
    _user("hydrology_256", 365, 256, 32, 256, "the same with more hidden units"),
    *_resets("rl_policy", 256, 2048, 128, 128, "pytorch/rl, its benchmark of LSTM backends, with resets"),
    *_resets("isaac_rl", 24, 4096, 256, 256, "rsl_rl and Isaac Lab: a rollout of 4096 robots", _ISAAC),
    *_resets("isaac_rl_512", 16, 8192, 512, 512, "rl_games and Isaac Gym: a rollout of 8192 robots", _ISAAC),
    *_resets("atari_rl", 128, 8, 512, 128, "cleanrl, ppo_atari_lstm"),
    _basecaller("hac", 96, 384),
    _basecaller("hac", 512, 384, _INFERENCE),  # batches of training have 96 chunks
    _basecaller("sup", 96, 1024),
    _basecaller("sup", 512, 1024, _INFERENCE),
    *(
        _user(f"rnnt_decode_n{N}", 1, N, 640, 640, _TRANSDUCER, L=2, modes=_INFERENCE, dtypes=_16_BIT)
        for N in (1, 16, 128)
    ),
    _user("vad", 512, 1, 128, 128, "silero-vad over a recording", modes=_INFERENCE),
    _user("vad_frame", 1, 1, 128, 128, "silero-vad, a frame of 32 ms", form="cell", modes=_INFERENCE),
    _user("diarise", 589, 32, 60, 128, "pyannote.audio segmentation-3.0, chunks of 10 s", L=4, D=2),
    _user("tts", 510, 1, 640, 256, "Kokoro, StyleTTS2: a duration encoder over phonemes", D=2, modes=_INFERENCE),
    _user("amp", 8192, 16, 1, 16, "neural-amp-modeler: audio samples"),
    _user("quant", 60, 800, 20, 64, "qlib, Alpha158", L=2),
    _user("ocr", 32, 256, 512, 128, "docTR, CRNN", L=2, D=2),
    _user("smiles", 1, 128, 256, 512, "REINVENT4: a token of 128 molecules", L=3, modes=_INFERENCE),
    _user("icefall", 200, 32, 512, 1024, "icefall lstm_transducer_stateless2", L=12, P=512, dtypes=("float16",)),
]


def _square(T: int, N: int, H: int, L: int = 1) -> Case:
    return Case(f"t{T}_n{N}_h{H}_l{L}", T, N, H, H, L=L, origin="the GPU targets' grid")


# The 24 shapes on which the GPU targets are judged: batch, hidden size and length each from small to large.
GPU_GRID = [
    *(_square(35, 20, H, L=2) for H in (200, 650, 1500)),
    *(_square(256, 64, H) for H in (64, 128, 160, 256, 512, 1024, 2048)),
    *(_square(256, N, 1024) for N in (8, 32, 128, 256)),
    *(_square(1024, N, 1024) for N in (1, 8)),
    *(_square(1024, N, 768) for N in (1, 16)),
    _square(512, 32, 512, L=2),
    _square(256, 128, 1024, L=4),
    _square(70, 80, 1152, L=3),
    _square(1024, 8, 2048),
    _square(128, 256, 2048, L=2),
    _square(64, 64, 4096),
]

CASES = {case.name: case for case in [*_CASES, *PACKED_AND_CELLS, *USERS, *GPU_GRID]}

# Those that `make bench` measures: a few seconds each on two cores.
_USERS_IN_BRIEF = ["vad", "vad_frame", "tts", "ocr", "smiles", "atari_rl_r1"]

# What `make bench` and `make gpu-bench` run: as much as fits their time.
SETS = {
    "cpu": [
        "lm_200", "lm_medium", "lm_char", "sequence_128", "sequence_512", "batch_256", "batch_512", "rl_rollout",
        "rnnt_prediction", "forecast", "stream_128", "stream_512", "stream_512_b32",
        *(case.name for case in PACKED_AND_CELLS), *_USERS_IN_BRIEF,
    ],
    "users_cpu": [
        *_USERS_IN_BRIEF, "atari_rl_r0", "atari_rl_r10", "quant", "hydrology_128", "hydrology_256", "diarise", "amp",
    ],
    "users_gpu": [case.name for case in USERS if case.name not in ("vad", "vad_frame")],
    "packed_and_cells": [case.name for case in PACKED_AND_CELLS],
    "gpu": [case.name for case in GPU_GRID],
    "quick": ["lm_200", "batch_256", "sequence_512", "stream_512"],
    "all": list(CASES),
}  # fmt: skip
