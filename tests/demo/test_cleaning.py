"""The packages' formats become plain prose."""

import pytest

from gptj_serve.demo.cleaning import devil_entry, jargon_entry, kjv_chapters


def test_verses_are_joined_by_chapter_without_references() -> None:
    lines = [
        "Ge1:1 In the beginning God created the heaven and the earth.",
        "Ge1:2 And the earth was without form,  and void;",
        "Ge2:1 Thus the heavens and the earth were finished,",
        "2Ki1:1 Then Moab rebelled against Israel.\n",
    ]
    assert kjv_chapters(lines) == [
        "In the beginning God created the heaven and the earth. And the earth was without form, and void;",
        "Thus the heavens and the earth were finished,",
        "Then Moab rebelled against Israel.",
    ]


def test_a_line_that_is_no_verse_is_an_error() -> None:
    with pytest.raises(ValueError, match="not a verse: 'Usage"):
        kjv_chapters(["Usage: bible"])


JARGON = """\
foo·bar
 /foo·bar/, n.

    [Usenet; very common] The most hallowed of names for “something” that a hacker
    needs to name, whatever it is and wherever it may have come from; said of a {
    place} and of\u00a0things. See also {baz}, {quux}.

    10 PRINT "X"
    20 GOTO 10

    2. [from C] It's \u2018nothing\u2019 (see {LISP}\u2014or don't).

"""


def test_jargon_entry_becomes_headword_and_prose() -> None:
    assert jargon_entry(JARGON) == (
        'foo·bar: The most hallowed of names for "something" that a hacker needs to name, whatever it is '
        "and wherever it may have come from; said of a place and of things.\n\n"
        "2. It's 'nothing' (see LISP -- or don't)."
    )


def test_brackets_inside_a_sentence_stay() -> None:
    assert jargon_entry("x\n n.\n\n    He said [sic] it.\n\n    [It] was so.\n") == (
        "x: He said [sic] it.\n\n[It] was so."
    )


@pytest.mark.parametrize(
    "body",
    [
        "    See {bit rot}.",
        "    [IRC] See {bot}, {spam} and {flood}.",
        "    ┌──────┬──────┐",
        "    if (x)\n        return y;",
    ],
)
def test_an_entry_without_prose_is_empty(body: str) -> None:
    assert jargon_entry(f"word\n n.\n\n{body}\n") == ""


DEVIL = """\
PROBOSCIS, n.  The _rudimentary_ organ of an elephant which serves him
in place of the knife-and-fork.
    Asked how he knew that an elephant was going, the illustrious
Jo. Miller answered.

    Poor Isabella's dead, whose abdication
        Set all tongues wagging {there}.
                                                                  G.J.

"""


def test_devil_entry_keeps_paragraphs_and_the_lines_of_verse() -> None:
    assert devil_entry(DEVIL) == (
        "PROBOSCIS, n. The rudimentary organ of an elephant which serves him in place of "
        "the knife-and-fork.\n\n"
        "Asked how he knew that an elephant was going, the illustrious Jo. Miller answered.\n\n"
        "Poor Isabella's dead, whose abdication\nSet all tongues wagging there."
    )
