"""The shipped model: small, whole, a real GPT-J, and as good as its card says."""

import json
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer, GPTJForCausalLM

from gptj_serve.demo import MODEL_DIR, card, evaluate
from gptj_serve.demo.save import MAX_WEIGHTS_BYTES
from gptj_serve.demo.tokenizer import END_OF_TEXT, END_OF_TEXT_ID, load_tokenizer


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    return evaluate.read_metrics(MODEL_DIR)


@pytest.fixture(scope="module")
def model() -> GPTJForCausalLM:
    return evaluate.load_model(MODEL_DIR)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(MODEL_DIR)


def test_the_weights_are_small_float16_and_complete(metrics: dict[str, Any]) -> None:
    path = MODEL_DIR / "model.safetensors"
    assert path.stat().st_size <= MAX_WEIGHTS_BYTES == 10_000_000
    assert path.stat().st_size == metrics["weights_bytes"]
    with safe_open(path, framework="pt") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118 (not a dict)
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert sum(tensor.numel() for tensor in tensors) == metrics["num_parameters"]
    assert all(torch.isfinite(tensor).all() for tensor in tensors)


def test_the_architecture_is_gpt_j(model: GPTJForCausalLM) -> None:
    config = json.loads((MODEL_DIR / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["GPTJForCausalLM"]
    assert (config["model_type"], config["activation_function"]) == ("gptj", "gelu_new")
    assert (config["dtype"], config["n_positions"], config["tie_word_embeddings"]) == ("float16", 2048, False)
    assert 0 < config["rotary_dim"] < config["n_embd"] // config["n_head"]
    assert [config[name] for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop")] == [0.0] * 3
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)


def test_attention_and_mlp_are_parallel(model: GPTJForCausalLM) -> None:
    block = model.transformer.h[0]
    x_BTD = torch.randn(1, 4, model.config.n_embd, generator=torch.Generator().manual_seed(0))
    position_ids = torch.arange(4)[None]
    mask = torch.full((4, 4), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        normed_BTD = block.ln_1(x_BTD)
        attended_BTD = block.attn(normed_BTD, attention_mask=mask, position_ids=position_ids)[0]
        expected = x_BTD + attended_BTD + block.mlp(normed_BTD)
        actual = block(x_BTD, attention_mask=mask, position_ids=position_ids)[0]
    torch.testing.assert_close(actual, expected)


def test_vocabulary_and_end_mark_agree_everywhere(model: GPTJForCausalLM, tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == model.config.vocab_size == model.lm_head.out_features
    assert tokenizer.token_to_id(END_OF_TEXT) == END_OF_TEXT_ID
    generation = json.loads((MODEL_DIR / "generation_config.json").read_text("utf-8"))
    for key in ("bos_token_id", "eos_token_id"):
        assert getattr(model.config, key) == generation[key] == END_OF_TEXT_ID
    hf_tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert hf_tokenizer.eos_token_id == hf_tokenizer.bos_token_id == END_OF_TEXT_ID
    assert hf_tokenizer.model_max_length == model.config.n_positions
    assert len(hf_tokenizer) == model.config.vocab_size


@cache
def shipped_tokenizer() -> Tokenizer:
    return load_tokenizer(MODEL_DIR)  # hypothesis and function-scoped fixtures do not mix


@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = shipped_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_transformers_reads_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    text = f"  In the beginning,\n\n\tnaïve 漢字 🙂 don't{END_OF_TEXT}x"
    ids = tokenizer.encode(text).ids
    hf_tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert hf_tokenizer(text)["input_ids"] == ids
    assert hf_tokenizer.decode(ids) == text


@pytest.mark.parametrize("prompt", ["In the beginning", "HOPE, n."])
def test_greedy_text_starts_as_recorded(
    prompt: str, model: GPTJForCausalLM, tokenizer: Tokenizer, metrics: dict[str, Any]
) -> None:
    recorded = next(entry for entry in metrics["continuations"] if entry["prompt"] == prompt)
    ids = evaluate.greedy_ids(model, tokenizer.encode(prompt).ids, 16)
    assert ids == recorded["token_ids"][:16]


def test_every_recorded_token_is_the_models_choice(
    model: GPTJForCausalLM, tokenizer: Tokenizer, metrics: dict[str, Any]
) -> None:
    assert [entry["prompt"] for entry in metrics["continuations"]] == list(evaluate.PROMPTS)
    for entry in metrics["continuations"]:
        prompt_ids, new_ids = tokenizer.encode(entry["prompt"]).ids, entry["token_ids"]
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt_ids + new_ids[:-1]])).logits[0, len(prompt_ids) - 1 :]
        chosen_T = logits_TV.gather(1, torch.tensor(new_ids)[:, None])[:, 0]
        # another CPU may round a near tie the other way
        torch.testing.assert_close(chosen_T, logits_TV.amax(dim=1), rtol=0, atol=1e-3)
        assert tokenizer.decode(new_ids, skip_special_tokens=True) == entry["text"]


def test_the_model_is_far_better_than_counting_pairs(metrics: dict[str, Any]) -> None:
    perplexity = {name: score["perplexity"] for name, score in metrics["heldout_scores"].items()}
    assert perplexity["gptj"] < 0.5 * perplexity["bigram"] < 0.5 * perplexity["unigram"]


def test_the_card_shows_the_recorded_figures(metrics: dict[str, Any]) -> None:
    text = card.README.read_text("utf-8")
    assert text == card.filled_in(text, card.render(metrics)), "run python -m gptj_serve.demo.card"
    assert f"| this model | {metrics['heldout_scores']['gptj']['perplexity']:.2f} |" in text
