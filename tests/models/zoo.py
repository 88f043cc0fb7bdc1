"""Small models of other packages with random weights, and what to compute with each: all builders."""

from zoo_agents import locomotion_actor, q_function, recurrent_policy, rollout_module
from zoo_signals import encodec, forecaster, image_classifier, prosody_predictor, streamflow, tacotron2, text_recogniser
from zoo_text import awd_lstm, lemmatizer, scored_language_model, tagger, tagger_with_recurrent_dropout, translator

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
