"""A recurrent language model: train it on any text, resume it exactly, sample from it.

from fusedlstm.lm import TrainConfig, Trainer, sample

trainer = Trainer(TrainConfig(data=("input.txt",), steps=1000))
trainer.run()
print(trainer.evaluate())
print(sample(trainer.model.eval(), trainer.corpus.vocabulary, "The "))
"""

from typing import TYPE_CHECKING

try:
    import numpy  # noqa: F401 - safetensors needs it and does not say so
    import safetensors  # noqa: F401
    import tqdm  # noqa: F401
except ModuleNotFoundError as error:
    # Raised when a name is used, since the help and `info` of fusedlstm.lm.cli work without these packages.
    _missing = error.name
    if not TYPE_CHECKING:  # for mypy the function would define every name

        def __getattr__(name):
            if name.startswith("_"):
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
            text = f"fusedlstm.lm needs the package {_missing}; install it with: pip install fusedlstm[lm]"
            raise ModuleNotFoundError(text, name=_missing)
else:
    from fusedlstm.lm.config import TrainConfig
    from fusedlstm.lm.data import ByteVocabulary, Corpus, WordVocabulary, load_corpus
    from fusedlstm.lm.errors import CheckpointError, InputError
    from fusedlstm.lm.evaluation import Evaluation, evaluate
    from fusedlstm.lm.generate import load_model, sample, stream
    from fusedlstm.lm.model import LanguageModel
    from fusedlstm.lm.train import Trainer

__all__ = [
    "ByteVocabulary",
    "CheckpointError",
    "Corpus",
    "Evaluation",
    "InputError",
    "LanguageModel",
    "TrainConfig",
    "Trainer",
    "WordVocabulary",
    "evaluate",
    "load_corpus",
    "load_model",
    "sample",
    "stream",
]
