"""What holds of a model's generation_config.json, and what is named because it does not."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from gptj_serve.errors import StartupError
from gptj_serve.models.generation_config import FILE, GenerationDefaults, read_defaults

VOCAB = 100


def read(folder: Path, said: dict[str, Any], config: dict[str, Any] | None = None) -> GenerationDefaults:
    (folder / FILE).write_text(json.dumps(said))
    return read_defaults(folder, config or {"eos_token_id": 5}, VOCAB)


def test_what_scores_can_do_is_the_models_default(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {
            "repetition_penalty": 1.2,
            "no_repeat_ngram_size": 3,
            "bad_words_ids": [[7], [8, 9]],
            "suppress_tokens": [1, 2],
            "begin_suppress_tokens": [3],
            "eos_token_id": [4, 5],
        },
    )
    assert found == GenerationDefaults(
        (4, 5),
        {
            "repetition_penalty": 1.2,
            "no_repeat_ngram_size": 3,
            "bad_words_ids": ((7,), (8, 9)),
            "suppress_tokens": (1, 2),
            "begin_suppress_tokens": (3,),
        },
        (),
    )


def test_nothing_is_said_of_what_transformers_writes_by_itself(tmp_path: Path) -> None:
    GenerationConfig(eos_token_id=5, pad_token_id=0, use_cache=True, num_beams=1).save_pretrained(tmp_path)
    whole = GenerationConfig(eos_token_id=5).to_dict()
    older = {
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "max_length": 20,
        "num_beams": 1,
        "do_sample": False,
    }
    assert json.loads((tmp_path / FILE).read_text())
    for said in (json.loads((tmp_path / FILE).read_text()), whole, older, {}):
        assert read(tmp_path, said) == GenerationDefaults((5,), {}, ())
    (tmp_path / FILE).unlink()
    assert read_defaults(tmp_path, {"eos_token_id": 6}, VOCAB) == GenerationDefaults((6,), {}, ())


def test_what_does_not_hold_is_named_once(tmp_path: Path) -> None:
    said = {
        "do_sample": True,
        "temperature": 0.9,
        "max_length": 50,
        "num_beams": 4,
        "early_stopping": True,
        "forced_eos_token_id": 5,
        "prompt_lookup_num_tokens": 3,
        "made_up": {"a": 1},
        "guidance_scale": 1.0,
    }
    found = read(tmp_path, said)
    path = tmp_path / FILE
    assert found.scores == {}
    assert found.notes == (
        f"{path}: do_sample=True, temperature=0.9, max_length=50:"
        " requests alone say how to sample and how much",
        f"{path}: num_beams=4, forced_eos_token_id=5, made_up={{'a': 1}}: is not supported and ignored",
    )


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("repetition_penalty", 0, "must be a number from 1e-06 to 1e+06"),
        ("repetition_penalty", "1", "must be a number from 1e-06 to 1e+06"),
        ("no_repeat_ngram_size", 101, "must be a whole number from 0 to 100"),
        ("no_repeat_ngram_size", 2.5, "must be a whole number from 0 to 100"),
        ("bad_words_ids", [1], "must be a list of lists of token ids"),
        ("bad_words_ids", [[]], "must be a list of lists of token ids"),
        ("bad_words_ids", [[100]], "must be token ids from 0 to 99"),
        ("suppress_tokens", [1, True], "must be token ids from 0 to 99"),
        ("begin_suppress_tokens", -1, "must be token ids from 0 to 99"),
    ],
)
def test_what_is_wrong_is_ignored_with_a_word(tmp_path: Path, name: str, value: Any, told: str) -> None:
    found = read(tmp_path, {name: value})
    assert found.scores == {}
    assert found.notes == (f"{tmp_path / FILE}: {name}={value!r}: {told}; it is ignored",)


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize(
    ("value", "known"), [(100, ()), (-1, ()), ([7, 50256], (7,)), ([50256, 50257], ()), ([], ())]
)
def test_an_end_of_text_outside_the_vocabulary_is_a_warning(
    tmp_path: Path, in_file: bool, value: Any, known: tuple[int, ...]
) -> None:
    said, config = (
        ({"eos_token_id": value}, {"eos_token_id": 5}) if in_file else ({}, {"eos_token_id": value})
    )
    found = read(tmp_path, said, config)
    path = tmp_path / (FILE if in_file else "config.json")
    assert found.eos_token_ids == known
    if value == []:
        assert found.notes == ()
    else:
        assert found.notes == (
            f"{path}: eos_token_id={value!r}: the model knows ids from 0 to 99; what is not among them never"
            " ends a text",
        )


@pytest.mark.parametrize("value", ["5", True, [1.0], {}])
def test_an_end_of_text_that_is_no_id_stops_the_start(tmp_path: Path, value: Any) -> None:
    with pytest.raises(StartupError, match="must be token ids from 0 to 99"):
        read(tmp_path, {"eos_token_id": value})
