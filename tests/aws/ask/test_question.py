"""What is asked and what is answered, as bytes: no I/O."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_serve.aws.ask.answer import EventReader, Refused, parse_event, refused, texts
from gptj_serve.aws.ask.question import JSON, of_body, of_text, sampling
from gptj_serve.aws.common.errors import CommandError, UsageError


class TestQuestion:
    def test_a_text(self) -> None:
        asked = of_text("Żółw", {"max_new_tokens": 3}, stream=True)
        assert json.loads(asked.body) == {
            "inputs": "Żółw",
            "parameters": {"max_new_tokens": 3},
            "stream": True,
        }
        assert (asked.content_type, asked.stream) == (JSON, True)

    def test_a_body_is_sent_as_it_is(self) -> None:
        body = b'{"prompt":  "a", "n": 2}'
        assert of_body(body, JSON, stream=False).body == body
        assert of_body(b"\xff{", JSON, stream=False).body == b"\xff{"
        assert of_body(b"text", "text/plain", stream=False).content_type == "text/plain"

    def test_a_body_that_streams(self) -> None:
        asked = of_body(b'{"prompt": "a", "stream": false}', "application/json; charset=utf-8", stream=True)
        assert json.loads(asked.body) == {"prompt": "a", "stream": True}
        assert of_body(b'{"prompt": "a", "stream": true}', JSON, stream=False).stream

    @pytest.mark.parametrize(("body", "content_type"), [(b"{", JSON), (b"[1]", JSON), (b"a", "text/plain")])
    def test_a_body_that_cannot_stream(self, body: bytes, content_type: str) -> None:
        with pytest.raises(UsageError, match="--stream"):
            of_body(body, content_type, stream=True)

    @pytest.mark.parametrize(
        ("options", "parameters", "wanted"),
        [
            ({"max_new_tokens": 5, "seed": None}, {}, {"max_new_tokens": 5}),
            ({"temperature": 0.7}, {}, {"temperature": 0.7, "do_sample": True}),
            ({"seed": 1}, {"do_sample": False}, {"seed": 1, "do_sample": False}),
            ({"temperature": 0.0, "top_p": 0.9}, {}, {"top_p": 0.9, "do_sample": False}),
            ({"top_k": 5}, {"top_k": 6, "details": True}, {"top_k": 5, "details": True, "do_sample": True}),
            ({}, {"temperature": 0.7}, {"temperature": 0.7}),
        ],
    )
    def test_options_that_sample(
        self, options: dict[str, Any], parameters: dict[str, Any], wanted: dict[str, Any]
    ) -> None:
        assert sampling(options, parameters) == wanted


class TestWholeAnswers:
    @pytest.mark.parametrize(
        ("document", "wanted"),
        [
            ([{"generated_text": "a"}], ["a"]),
            (
                [[{"generated_text": "a"}, {"generated_text": "b"}], [{"generated_text": "c"}]],
                ["a", "b", "c"],
            ),
            ({"response": [{"generated_text": "a"}], "status": 200}, ["a"]),
            ({"choices": [{"text": "a"}, {"text": "b"}]}, ["a", "b"]),
            ({"choices": [{"message": {"role": "assistant", "content": "a"}}]}, ["a"]),
            ({"something": "else"}, ['{"something": "else"}']),
        ],
    )
    def test_every_schema(self, document: Any, wanted: list[str]) -> None:
        assert texts(json.dumps(document).encode()) == wanted

    def test_plain_text(self) -> None:
        assert texts("żółw".encode()) == ["żółw"]

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (
                '{"error": "top_p=3: no", "error_type": "validation", "request_id": "r"}',
                "400 validation: top_p=3: no (request r)",
            ),
            (
                '{"error": {"message": "no", "type": "invalid"}}',
                "400 invalid: no",
            ),
            (
                '{"code": 4, "type": "NotFound", "message": "m"}',
                "400 NotFound: m",
            ),
            ("", "400: no reason was given"),
            ("<html>proxy</html>", "400: <html>proxy</html>"),
        ],
    )
    def test_errors_in_every_form(self, body: str, said: str) -> None:
        assert refused(400, body).message == said


EVENTS = ["żółw", "a\nb", '{"x": "😀"}', "[DONE]"]


class TestStreams:
    @given(cuts=st.lists(st.integers(0, 200)), line_end=st.sampled_from([b"\n", b"\r\n"]))
    def test_events_whatever_the_pieces(self, cuts: list[int], line_end: bytes) -> None:
        """Also with a cut within a character, and between CR and LF."""
        lines: list[bytes] = [b": a comment", b"event: other", b"id: 7"]
        for event in EVENTS:
            lines += [b"data: " + line.encode() for line in event.split("\n")] + [b""]
        wire = line_end.join([*lines, b""])
        edges = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
        reader = EventReader()
        found = [event for begin, end in itertools.pairwise(edges) for event in reader.feed(wire[begin:end])]
        assert found == EVENTS

    def test_an_event_that_was_cut_off_is_none(self) -> None:
        assert EventReader().feed(b"data: 1\n\ndata: 2\n") == ["1"]

    def test_tokens(self) -> None:
        event = parse_event('{"token": {"id": 1, "text": " the"}, "generated_text": null, "details": null}')
        assert (event.text, event.is_token, event.is_last) == (" the", True, False)
        last = parse_event(
            '{"token": {"id": 0, "text": "", "special": true}, "generated_text": "",'
            ' "details": {"finish_reason": "length"}}'
        )
        assert (last.text, last.is_last, last.reason) == ("", True, "length")

    def test_choices(self) -> None:
        assert parse_event('{"choices": [{"index": 1, "text": "a"}]}').index == 1
        assert parse_event('{"choices": [{"index": 0, "delta": {"content": "a"}}]}').text == "a"
        assert parse_event('{"choices": [{"index": 0, "delta": {"role": "assistant"}}]}').text == ""
        assert parse_event('{"choices": [], "usage": {}}').text == ""
        assert parse_event("[DONE]").is_last

    def test_errors(self) -> None:
        with pytest.raises(Refused, match=r"timeout: too late \(request r\)"):
            parse_event('{"error": "too late", "error_type": "timeout", "request_id": "r"}')
        with pytest.raises(CommandError, match="no schema knows: 17"):
            parse_event("17")
