"""Whatever files a tokenizer comes in, prompts and answers are those of Transformers' ``AutoTokenizer``."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gptj_serve import demo
from gptj_serve.errors import StartupError
from gptj_serve.serving.text import Tokenizer
from gptj_serve.serving.tokenizing import PreparedTokenizer, convert, prepare
from gptj_serve.serving.tokenizing.files import read_plain
from support.serving_fakes import END_OF_TEXT, backend
from support.tokenizer_layouts import BYTE_LEVEL, FLAGS, NAMED, NUM_IDS, Layout, added, bos

MARK = "<|im_end|>"
EXTRA = "<|extratoken_1|>"
GPT2 = {"tokenizer_class": "GPT2Tokenizer", **NAMED}
OBJECTS = {name: {"__type": "AddedToken", **FLAGS, "content": END_OF_TEXT} for name in NAMED}
DECODER = {
    "0": {**FLAGS, "content": END_OF_TEXT},
    str(NUM_IDS - 1): {**FLAGS, "content": EXTRA, "special": False},
}
WITH_MARK = {**DECODER, str(NUM_IDS): {**FLAGS, "content": MARK}}
HELLO = backend().token_to_id("Hello")
SPLIT = {"type": "Split", "pattern": {"Regex": " ?[^(\\s|[.,!?])]+"}, "behavior": "Isolated", "invert": False}
PROMPTS = [
    "Hello world",
    "  The cat,  sat\n\non",
    f"a{END_OF_TEXT}b",
    f"x {MARK} y{EXTRA}z",
    "cafe\u0301 é日本語 😀",
    "<pad> <x><pad1>",
]

PLAIN = {
    "tokenizer.json alone": Layout(),
    "as GPT-J was published": Layout(
        slow=True,
        config={
            **OBJECTS,
            "add_prefix_space": False,
            "model_max_length": 2048,
            "special_tokens_map_file": None,
            "name_or_path": "gpt2",
            "from_slow": True,
            "tokenizer_class": "GPT2Tokenizer",
        },
        special=NAMED,
        added={EXTRA: NUM_IDS - 1},
        json={"post_processor": BYTE_LEVEL},
    ),
    "Transformers 4, with a special token": Layout(
        config={
            **GPT2,
            "added_tokens_decoder": WITH_MARK,
            "additional_special_tokens": [MARK],
            "errors": "replace",
        },
        special={**NAMED, "additional_special_tokens": [MARK]},
        added={EXTRA: NUM_IDS - 1, MARK: NUM_IDS},
        more=(added(MARK, NUM_IDS),),
    ),
    "any class": Layout(config={"tokenizer_class": "PreTrainedTokenizerFast", **NAMED}),
    "no end of text named": Layout(config={"tokenizer_class": "PreTrainedTokenizerFast"}),
    "clean_up_tokenization_spaces": Layout(config={**GPT2, "clean_up_tokenization_spaces": True}),
    "the class in config.json": Layout(model={"tokenizer_class": "GPT2TokenizerFast", "model_type": "gpt2"}),
}
CONVERTED = {
    "slow": Layout(json=None, slow=True),
    "slow, with added tokens": Layout(
        json=None,
        slow=True,
        config={**GPT2, "additional_special_tokens": [MARK]},
        added={EXTRA: NUM_IDS - 1, MARK: NUM_IDS},
    ),
    "slow, special tokens named in their own file": Layout(
        json=None,
        slow=True,
        special={"eos_token": MARK, "additional_special_tokens": [MARK]},
        added={EXTRA: NUM_IDS - 1, MARK: NUM_IDS},
    ),
    "slow, since 4.34": Layout(json=None, slow=True, config={**GPT2, "added_tokens_decoder": WITH_MARK}),
    "slow, a gap": Layout(json=None, slow=True, added={"<pad>": NUM_IDS + 7}),
    "slow, a taken id": Layout(json=None, slow=True, added={"<pad1>": 0}),
    "slow, prefix space": Layout(json=None, slow=True, config={**GPT2, "add_prefix_space": True}),
    "slow, BOS": Layout(json=None, slow=True, config={**GPT2, "add_bos_token": True}),
    "slow, an end of its own": Layout(json=None, slow=True, config={**GPT2, "eos_token": "Hello"}),
    "prefix space": Layout(config={**GPT2, "add_prefix_space": True}),
    "prefix space in tokenizer.json": Layout(
        json={"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}}
    ),
    "BOS": Layout(json={"post_processor": bos(END_OF_TEXT, 0)}),
    "BOS in both": Layout(
        json={"post_processor": bos(END_OF_TEXT, 0)}, config={**GPT2, "add_bos_token": True}
    ),
    "a special token of special_tokens_map.json alone": Layout(
        special={"additional_special_tokens": [MARK]}, more=(added(MARK, NUM_IDS, special=False),)
    ),
    "two ends of text": Layout(
        config=GPT2, special={**NAMED, "eos_token": MARK}, more=(added(MARK, NUM_IDS),)
    ),
    "a special token of tokenizer_config.json alone": Layout(config={**GPT2, "eos_token": MARK}),
    "added_tokens_decoder has more": Layout(config={**GPT2, "added_tokens_decoder": WITH_MARK}),
    "added_tokens_decoder has less": Layout(
        config={**GPT2, "added_tokens_decoder": DECODER}, more=(added(MARK, NUM_IDS),)
    ),
    "added_tokens_decoder has other flags": Layout(
        config={
            **GPT2,
            "added_tokens_decoder": {**DECODER, "0": {**FLAGS, "content": END_OF_TEXT, "lstrip": True}},
        }
    ),
    "added_tokens.json has more": Layout(added={"<x>": NUM_IDS}),
    "a gap": Layout(more=(added(MARK, NUM_IDS + 3),)),
    "special and not": Layout(added={MARK: NUM_IDS + 1}, more=(added(MARK, NUM_IDS),)),
    "split_special_tokens": Layout(config={**GPT2, "split_special_tokens": True}),
    "GPT-NeoX": Layout(
        config={"tokenizer_class": "GPTNeoXTokenizerFast", **NAMED}, json={"normalizer": {"type": "NFC"}}
    ),
    "BLOOM": Layout(
        config={"tokenizer_class": "BloomTokenizerFast", **NAMED},
        json={
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [SPLIT, {**BYTE_LEVEL, "use_regex": False}],
            }
        },
        model={"model_type": "bloom"},
    ),
    "CodeGen": Layout(config={"tokenizer_class": "CodeGenTokenizer", **NAMED}, slow=True),
    "OPT": Layout(
        json=None,
        slow=True,
        config={**GPT2, "bos_token": "Hello", "pad_token": "<pad>", "add_bos_token": True},
        model={"model_type": "opt"},
    ),
    "a decoder in a sequence": Layout(
        config={"tokenizer_class": "PreTrainedTokenizerFast"},
        json={"decoder": {"type": "Sequence", "decoders": [BYTE_LEVEL, {"type": "Fuse"}]}},
    ),
    "null for an end of text": Layout(
        config={**GPT2, "eos_token": None}, json={"normalizer": {"type": "NFC"}}
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def check(directory: Path) -> bool:
    """Compare with Transformers; whether the directory's tokenizer.json was enough."""
    plain = read_plain(directory)
    ours = Tokenizer.of(plain or convert.convert(directory))
    theirs: Any = AutoTokenizer.from_pretrained(directory)
    for prompt in PROMPTS:
        for added_too in (True, False):
            ids = theirs(prompt, add_special_tokens=added_too).input_ids
            assert list(ours.encode(prompt, added_too)) == ids, prompt
        for skip in (True, False):
            shown = [token_id for token_id in [*ids, 0, HELLO] if not (skip and ours.is_special(token_id))]
            assert ours.decode(shown) == theirs.decode([*ids, 0, HELLO], skip_special_tokens=skip), prompt
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.backend.get_vocab() == theirs.get_vocab()
    return plain is not None


@pytest.mark.parametrize("name", PLAIN)
def test_layouts_whose_tokenizer_json_says_all(name: str, tmp_path: Path) -> None:
    assert check(PLAIN[name].write(tmp_path))


@pytest.mark.parametrize("name", CONVERTED)
def test_layouts_that_transformers_makes_sense_of(name: str, tmp_path: Path) -> None:
    assert not check(CONVERTED[name].write(tmp_path))


def test_what_transformers_saves_now_says_all(tmp_path: Path) -> None:
    saved: Any = AutoTokenizer.from_pretrained(Layout().write(tmp_path / "a"))
    saved.add_special_tokens({"additional_special_tokens": [MARK], "pad_token": "<pad>"})
    saved.save_pretrained(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text('{"model_type": "gptj"}')
    assert check(tmp_path / "b")
    assert read_plain(demo.MODEL_DIR) is not None


MAYBE_NAMED = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(NAMED, st.sampled_from([END_OF_TEXT, OBJECTS["eos_token"], None, MARK, "Hello"])),
        "pad_token": st.sampled_from([END_OF_TEXT, "<pad>", None]),
        "additional_special_tokens": st.sampled_from([[], [MARK], [END_OF_TEXT]]),
    },
)
CONFIGS = st.tuples(
    MAYBE_NAMED,
    st.fixed_dictionaries(
        {
            "tokenizer_class": st.sampled_from(
                ["GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"]
            )
        },
        optional={
            "added_tokens_decoder": st.sampled_from([DECODER, WITH_MARK]),
            "add_prefix_space": st.booleans(),
            "add_bos_token": st.booleans(),
        },
    ),
).map(lambda both: {**both[0], **both[1]})
LAYOUTS = st.builds(
    Layout,
    json=st.sampled_from([{}, {}, {"post_processor": bos(END_OF_TEXT, 0)}, {"post_processor": BYTE_LEVEL}]),
    config=st.none() | CONFIGS,
    special=st.none() | MAYBE_NAMED.map(lambda named: {name: named[name] for name in named if named[name]}),
    added=st.sampled_from([None, {EXTRA: NUM_IDS - 1}, {MARK: NUM_IDS}, {"<x>": NUM_IDS + 5, MARK: NUM_IDS}]),
    more=st.sampled_from(
        [(), (added(MARK, NUM_IDS),), (added(MARK, NUM_IDS, special=False),), (added(MARK, NUM_IDS + 3),)]
    ),
)


@settings(max_examples=25)
@given(layout=LAYOUTS)
def test_whatever_the_files_say(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> None:
    check(layout.write(tmp_path_factory.mktemp("layout")))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    Layout(json=None, slow=True).write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(StartupError, match=rf"{tmp_path}.*tokenizer\.json.*{name}"):
        read_plain(tmp_path)


SLOW = Layout(json=None, slow=True, config={}, added={})
FAST = Layout(config={}, special={})


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *(
            (SLOW, name)
            for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json")
        ),
        *((FAST, name) for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")),
    ],
)
@pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe", b"[1]", b"version https://git-lfs"])
def test_a_corrupt_file_is_named(layout: Layout, name: str, content: bytes, tmp_path: Path) -> None:
    (layout.write(tmp_path) / name).write_bytes(content)
    with pytest.raises(StartupError, match=name):
        read_plain(tmp_path)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (
            Layout(config={**GPT2, "added_tokens_decoder": {"0": "text"}}),
            r"Transformers makes no tokenizer of tokenizer\.json, tokenizer_config\.json: TypeError: .*dict",
        ),
        (Layout(config={**GPT2, "additional_special_tokens": 5}), "Transformers makes no tokenizer of"),
        (
            Layout(config={"tokenizer_class": "TokenizersBackend"}, json={"decoder": {"type": "Fuse"}}),
            "the tokenizer's decoder is Fuse; only ByteLevel",
        ),
        (
            Layout(
                config={
                    **GPT2,
                    "clean_up_tokenization_spaces": True,
                    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
                }
            ),
            "will_corrupt_output=true is not supported",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(layout: Layout, reason: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=f"{tmp_path}: .*{reason}"):
        Tokenizer.of(read_plain(layout.write(tmp_path)) or convert.convert(tmp_path))


def test_code_beside_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    config = {**GPT2, "auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    Layout(config=config, model={"model_type": "own"}).write(tmp_path)
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(StartupError):
        Tokenizer.of(read_plain(tmp_path) or convert.convert(tmp_path))
    assert not (tmp_path / "was_run").exists()


def test_the_process_leaves_a_tokenizer_or_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> SimpleNamespace:
        monkeypatch.setattr("sys.argv", command[2:])
        return SimpleNamespace(returncode=convert.main())

    # the process itself is started where a service is; here it would only take seconds
    monkeypatch.setattr(subprocess, "run", run)
    layout = Layout(json=None, slow=True, config={**GPT2, "add_bos_token": True})
    prepared = prepare.prepare(layout.write(tmp_path / "model"))
    prepared.save(tmp_path / "saved")
    assert PreparedTokenizer.load(tmp_path / "saved") == prepared == convert.convert(tmp_path / "model")
    assert Tokenizer.of(prepared).encode("Hello") == (0, HELLO)

    broken = Layout(config={**GPT2, "added_tokens_decoder": {"0": "text"}}).write(tmp_path / "broken")
    with pytest.raises(StartupError, match="TypeError"):
        prepare.prepare(broken)
    with pytest.raises(StartupError, match="ended with exit code -9"):
        prepare.outcome(tmp_path, -9)
