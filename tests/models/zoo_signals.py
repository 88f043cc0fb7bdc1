"""Models of speech, images and series of measurements."""

import sys

import pytest
import torch
from building import F64, Case, import_module, wake
from torch import nn
from torch.nn import functional as F


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


def tacotron2() -> Case:
    """Text to speech: a packed bidirectional encoder, two cells and an attention for each frame."""
    # The package index has torchaudio for CUDA only, and that cannot be loaded beside a CPU torch.
    speechbrain = import_module("speechbrain.lobes.models.Tacotron2", without=["torchaudio"])
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


def prosody_predictor() -> Case:
    """Durations, pitch and loudness of speech: bidirectional LSTMs between layers that depend on a speaker's style."""
    # Its package begins with what fetches weights and writes logs, and names a text model of transformers.
    without = ["kokoro.model", "kokoro.pipeline", "loguru", "transformers"]
    modules = import_module("kokoro.modules", without=without)
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
    sequencer = import_module("timm.models.sequencer", without=without)
    sizes = {"layers": (1, 1), "patch_sizes": (4, 2), "embed_dims": (8, 12), "hidden_sizes": (4, 6)}
    model = sequencer.Sequencer2d(num_classes=5, mlp_ratios=(2.0, 2.0), drop_path_rate=0.1, **sizes)
    images, classes = torch.randn(2, 3, 16, 24), torch.tensor([3, 0])

    def run():
        model.init_weights()
        wake(model)
        logits = model(images)
        return {"logits": logits, "loss": F.cross_entropy(logits, classes)}

    return Case(model, run, lstms=4, cells=0)


def text_recogniser() -> Case:
    """A reader of lines of text in images: convolutions, then two bidirectional LSTMs over their columns."""
    # Its package begins with what reads files and finds the lines.
    recogniser = import_module("easyocr.model.vgg_model", without=["easyocr.easyocr", "torchvision"])
    model = recogniser.Model(input_channel=1, output_channel=16, hidden_size=6, num_class=10)
    lines, text, lengths = torch.randn(3, 1, 32, 48), torch.randint(1, 10, (3, 4)), torch.tensor([4, 2, 3])

    def run():
        logits = model(lines, None)
        steps = torch.full((3,), logits.shape[1])
        loss = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), text, steps, lengths)
        return {"logits": logits, "loss": loss}

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


def streamflow() -> Case:
    """A river's discharge from weather and its basin; a twin, which shows every gate, takes over the LSTM's weights."""
    # They read data sets, with xarray, and draw samples, with numba.
    without = ["neuralhydrology.datautils.utils", "neuralhydrology.utils.samplingutils"]
    custom = import_module("neuralhydrology.modelzoo.customlstm", without=without)
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
