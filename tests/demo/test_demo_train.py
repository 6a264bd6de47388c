"""Training: the schedule, the batches, the fused kernels, and a whole run of two steps."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPTJForCausalLM

from gptj_serve.demo import evaluate
from gptj_serve.demo.corpus import SPLITS, CorpusError, Document, write_corpus
from gptj_serve.demo.options import TrainOptions
from gptj_serve.demo.save import save_model
from gptj_serve.demo.tokenizer import END_OF_TEXT, load_tokenizer, token_stream, train_tokenizer
from gptj_serve.demo.train import BatchSampler, Best, Trainer, learning_rate_scale, main, use_fused_kernels

TINY = TrainOptions(
    device="cpu",
    steps=2,
    batch_size=4,
    warmup_steps=1,
    eval_every=1,
    vocab_size=300,
    n_positions=32,
    n_embd=32,
    n_layer=2,
    n_head=2,
    rotary_dim=8,
)
TINY_FLAGS = [
    f"--{field.name.replace('_', '-')}={getattr(TINY, field.name)}" for field in dataclasses.fields(TINY)
]
MODEL_FILES = {
    "config.json",
    "generation_config.json",
    "metrics.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def tiny_model(*, dropout: float = 0.0) -> GPTJForCausalLM:
    torch.manual_seed(0)
    model = GPTJForCausalLM(TINY.model_config(300, dropout=dropout))
    with torch.no_grad():  # the initial weights are so small that every difference would be too
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(10)
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``corpus``, and ``model`` trained on it through the command line."""
    directory = tmp_path_factory.mktemp("demo")
    generator = random.Random(0)
    words = ["the", "king", "of", "Israel", "said", "unto", "them", "hope", "naïve", "code", "42", "and\n"]
    texts = [f"Entry {n}: {' '.join(generator.choices(words, k=30))}." for n in range(200)]
    write_corpus((Document("kjv", text) for text in texts), directory / "corpus")
    (directory / "corpus" / "packages.json").write_text('{"dict-devil": "1.0"}')
    assert main([f"--corpus={directory / 'corpus'}", f"--out={directory / 'model'}", *TINY_FLAGS]) == 0
    return directory


def test_a_run_writes_every_file_and_transformers_loads_it(trained: Path) -> None:
    model_dir = trained / "model"
    assert {path.name for path in model_dir.iterdir()} == MODEL_FILES
    model = GPTJForCausalLM.from_pretrained(model_dir)
    assert model.dtype == torch.float16
    assert (model.config.n_layer, model.config.n_embd, model.config.attn_pdrop) == (2, 32, 0.0)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    assert tokenizer.eos_token == END_OF_TEXT
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id
    text = f"naïve  code\n42 {END_OF_TEXT}"
    assert tokenizer(text)["input_ids"] == load_tokenizer(model_dir).encode(text).ids


def test_a_run_records_what_it_did(trained: Path) -> None:
    metrics = evaluate.read_metrics(trained / "model")
    assert metrics["training"]["steps"] == 2
    assert metrics["training"]["best_step"] in (1, 2)
    assert metrics["training"]["options"]["n_embd"] == 32
    assert metrics["packages"] == {"dict-devil": "1.0"}
    assert sum(metrics["corpus"][split]["documents"] for split in SPLITS) == 200
    assert metrics["weights_bytes"] == (trained / "model" / "model.safetensors").stat().st_size
    assert [entry["prompt"] for entry in metrics["continuations"]] == list(evaluate.PROMPTS)


def test_the_evaluation_command_confirms_a_run_and_notices_other_figures(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--corpus={trained / 'corpus'}", f"--model={trained / 'model'}"]
    assert evaluate.main(arguments) == 0
    measured = json.loads(capsys.readouterr().out)
    metrics = evaluate.read_metrics(trained / "model")
    assert set(measured) == {"gptj", "bigram", "unigram"}
    assert measured["gptj"]["perplexity"] == pytest.approx(metrics["heldout_scores"]["gptj"]["perplexity"])

    changed = json.loads(json.dumps(metrics))
    changed["heldout_scores"]["gptj"]["perplexity"] *= 1.01
    path = trained / "model" / "metrics.json"
    original = path.read_text("utf-8")
    path.write_text(json.dumps(changed), "utf-8")
    try:
        assert evaluate.main(arguments) == 1
    finally:
        path.write_text(original, "utf-8")
    assert "gptj perplexity: measured" in capsys.readouterr().err


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--corpus={tmp_path}", f"--out={tmp_path / 'model'}", *TINY_FLAGS]) == 1
    assert "train.jsonl is missing" in capsys.readouterr().err


def test_a_model_that_would_be_too_large_is_refused_before_training(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TINY_FLAGS, "--n-embd=512", "--n-layer=3"]
    assert main([f"--corpus={trained / 'corpus'}", f"--out={tmp_path / 'model'}", *flags]) == 1
    assert "more than 10000000" in capsys.readouterr().err


def test_saving_keeps_the_weights(tmp_path: Path) -> None:
    model = tiny_model().eval()
    tokenizer = train_tokenizer(["some text"], 300)
    save_model(TINY.model_config(300, dropout=0.0), model.state_dict(), tokenizer, tmp_path)
    ids_BT = torch.arange(32)[None]
    with torch.no_grad():
        expected = model(ids_BT).logits
        actual = evaluate.load_model(tmp_path)(ids_BT).logits
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


def test_fused_kernels_change_neither_logits_nor_gradients() -> None:
    plain, fused = tiny_model().train(), tiny_model().train()
    use_fused_kernels(fused)
    ids_BT = torch.randint(300, (3, 32), generator=torch.Generator().manual_seed(1))
    for model in (plain, fused):
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        logits_BTV.square().mean().backward()
    torch.testing.assert_close(fused(ids_BT).logits, plain(ids_BT).logits, rtol=1e-4, atol=1e-4)
    for (name, expected), actual in zip(plain.named_parameters(), fused.parameters(), strict=True):
        assert expected.grad is not None, name
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_fused_attention_drops_out_in_training_only() -> None:
    model = tiny_model(dropout=0.5)
    for block in model.transformer.h:  # leave attention's dropout alone in the model
        block.attn.resid_dropout.p = block.mlp.dropout.p = 0.0
    model.transformer.drop.p = 0.0
    use_fused_kernels(model)
    ids_BT = torch.arange(32)[None]
    assert not torch.equal(model.train()(ids_BT).logits, model(ids_BT).logits)
    assert torch.equal(model.eval()(ids_BT).logits, model(ids_BT).logits)


def test_learning_rate_warms_up_and_ends_low() -> None:
    assert learning_rate_scale(0, 0.0, 10) == pytest.approx(0.1)
    assert learning_rate_scale(10, 0.0, 10) == pytest.approx(1.0)
    assert learning_rate_scale(50, 0.5, 10) == pytest.approx(0.51)
    assert learning_rate_scale(100, 1.0, 10) == pytest.approx(0.02)


def test_batches_are_runs_of_the_stream_and_some_start_where_documents_do() -> None:
    stream = np.where(np.arange(1000) % 50 == 0, 0, np.arange(1000))
    sample = BatchSampler(stream, 33, TINY)
    rows = torch.cat([sample() for _ in range(20)])
    assert rows.shape == (80, 33)
    offsets = [int(row[1]) - 1 if row[1] else int(row[2]) - 2 for row in rows]
    for row, offset in zip(rows, offsets, strict=True):
        assert row.tolist() == stream[offset : offset + 33].tolist()
    first_of_each_batch = offsets[::4]  # a quarter of four rows
    assert all(offset % 50 == 1 for offset in first_of_each_batch)
    assert len(set(offsets)) > 40


def test_a_stream_shorter_than_a_row_is_an_error() -> None:
    with pytest.raises(CorpusError, match="has 33 tokens, a row needs 33"):
        BatchSampler(np.zeros(33, dtype=np.int64), 33, TINY)


def run_trainer(**changes: object) -> tuple[GPTJForCausalLM, Best, int]:
    options = dataclasses.replace(TINY, **changes)  # type: ignore[arg-type]
    stream = np.tile(np.arange(50), 20)
    torch.manual_seed(0)
    model = GPTJForCausalLM(options.model_config(300, dropout=0.0))
    best, steps, _ = Trainer(model, stream, stream[:100], options).run()
    return model, best, steps


def test_training_learns() -> None:
    _, best, steps = run_trainer(steps=30, learning_rate=1e-2, eval_every=10)
    assert steps == 30
    assert best.nats < 2.0 < np.log(300)  # a stream that only counts to fifty


def test_training_stops_when_its_time_is_over() -> None:
    _, best, steps = run_trainer(steps=1_000_000, max_seconds=0.5, eval_every=1_000_000)
    assert 1 <= steps < 1000
    assert best.step == steps


def test_training_that_diverges_says_so() -> None:
    with pytest.raises(FloatingPointError, match="lower --learning-rate"):
        run_trainer(learning_rate=1e30)


def test_the_best_checkpoint_is_kept_as_it_was() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    best = Best()
    for step, (nats, weight) in enumerate([(2.0, 1.0), (1.0, 2.0), (1.5, 3.0), (float("nan"), 4.0)]):
        torch.nn.init.constant_(model.weight, weight)
        best.offer(nats, step, model)
    assert (best.nats, best.step, best.weights["weight"].item()) == (1.0, 1, 2.0)


def test_model_costs_are_those_of_a_plain_forward_pass() -> None:
    model = tiny_model().eval()
    stream = np.random.default_rng(0).integers(300, size=90)
    nats = evaluate.model_nats(model, stream)
    assert nats.shape == (89,)

    def cost(start: int, position: int) -> float:
        with torch.no_grad():
            logits_V = model(torch.from_numpy(stream[None, start:position])).logits[0, -1]
        return float(torch.nn.functional.cross_entropy(logits_V, torch.tensor(stream[position])))

    # context 32: one full window, then windows that start 16 tokens on each time, the last one cut short
    for start, position in [(0, 1), (0, 32), (16, 33), (16, 48), (32, 49), (57, 81), (57, 89)]:
        assert nats[position - 1] == pytest.approx(cost(start, position), abs=1e-4), position


def test_scores_follow_their_definitions() -> None:
    result = evaluate.score(np.log([2.0, 8.0]), num_characters=8)
    assert result.perplexity == pytest.approx(4.0)
    assert result.bits_per_character == pytest.approx(0.5)


def test_greedy_equals_a_plain_loop() -> None:
    model = tiny_model().eval()
    ids = [5, 6, 7]
    for _ in range(10):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert 0 not in ids, "the end mark would hide what is compared here"
    assert evaluate.greedy_ids(model, [5, 6, 7], 10) == ids[3:]


def test_greedy_ends_after_the_end_mark() -> None:
    model = tiny_model().eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    torch.nn.init.zeros_(model.lm_head.bias)  # all logits equal: the first id, the end mark, wins
    assert evaluate.greedy_ids(model, [5], 10) == [0]


def test_greedy_ends_when_the_context_is_full() -> None:
    model = tiny_model().eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    model.lm_head.bias.data.zero_()[7] = 1.0
    assert evaluate.greedy_ids(model, [5] * 30, 10) == [7, 7]


def test_a_token_stream_has_end_marks_around_every_text() -> None:
    tokenizer = train_tokenizer(["ab ab ab", "cd"], 300)
    stream = token_stream(tokenizer, ["ab", "cd"])
    assert stream[0] == stream[-1] == 0
    assert (stream == 0).sum() == 3
    assert (
        tokenizer.decode(stream.tolist(), skip_special_tokens=False)
        == f"{END_OF_TEXT}ab{END_OF_TEXT}cd{END_OF_TEXT}"
    )
