"""Works out what a request's parameters mean for its scores, once for each sequence and not at every step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gptj_serve.engine.sampling.uniform import sequence_state
from gptj_serve.request import GenerationRequest, IdLists, SamplingParams


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """Sequences of at least two token ids whose last one must not follow the others.

    Shape suffixes: N words, P ids before the last one in the longest of them.

    Attributes:
        prefixes: int64 [N, P], all but the last id, at the row's end; what is before them has no meaning.
        lengths: int64 [N], how many ids of the prefix there are, 1..P.
        last_ids: int64 [N], the last id.
        starts: int64 [N], the earliest position of a sequence that the first id may have.
    """

    prefixes: np.ndarray
    lengths: np.ndarray
    last_ids: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of(words: Sequence[tuple[tuple[int, ...], int]]) -> "Words":
        """Make them from whole words, each with the position where it may begin."""
        lengths = [len(word) - 1 for word, _ in words]
        prefixes_NP = np.zeros((len(words), max(lengths, default=0)), np.int64)
        for n, (word, _) in enumerate(words):
            prefixes_NP[n, prefixes_NP.shape[1] - lengths[n] :] = word[:-1]
        last, starts = [word[-1] for word, _ in words], [start for _, start in words]
        return Words(prefixes_NP, *(np.array(values, np.int64) for values in (lengths, last, starts)))

    def that_fit(self, end: int) -> "Words":
        """The words that the token at position ``end`` may complete."""
        fits_N = end - self.lengths >= self.starts
        columns = (self.prefixes, self.lengths, self.last_ids, self.starts)
        return Words(*(one[fits_N] for one in columns))


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """What stays the same while a sequence is generated.

    Attributes:
        sampling: What the request asks for.
        num_prompt: How many tokens the prompt has, >= 1.
        never_ids: Ids of the vocabulary that are never chosen.
        never_first_ids: Ids of the vocabulary that are not chosen first.
        words: Longer sequences that are not completed; there may be none.
        min_new_tokens: 0 if there is no end of sequence to hold back.
        eos_token_ids: Ids of the vocabulary that end the sequence.
        bias_ids: int64 [N], ids of the vocabulary with a bias, each once.
        bias_values: float64 [N], their biases.
        top_k: See `SamplingParams`; 0 if the vocabulary has no more.
        draw_state: What the sequence's random numbers have in common.
        uses: Names of the filters that may have something to do, and "draw".
    """

    sampling: SamplingParams
    num_prompt: int
    never_ids: tuple[int, ...]
    never_first_ids: tuple[int, ...]
    words: Words
    min_new_tokens: int
    eos_token_ids: tuple[int, ...]
    bias_ids: np.ndarray
    bias_values: np.ndarray
    top_k: int
    draw_state: int
    uses: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        sampling = self.sampling
        asked = {
            "additions": len(self.bias_ids) or sampling.presence_penalty or sampling.frequency_penalty,
            "repetition": sampling.repetition_penalty != 1.0,
            "ngrams": sampling.no_repeat_ngram_size,
            "words": len(self.words.last_ids),
            "held_back": self.never_ids or self.never_first_ids or self.min_new_tokens,
            "temperature": sampling.do_sample and sampling.temperature != 1.0,
            "top_k": sampling.do_sample and self.top_k,
            "top_p": sampling.do_sample and sampling.top_p < 1.0,
            "min_p": sampling.do_sample and sampling.min_p > 0.0,
            "typical_p": sampling.do_sample and sampling.typical_p < 1.0,
            "draw": sampling.do_sample,
        }
        object.__setattr__(self, "uses", frozenset(name for name, is_asked in asked.items() if is_asked))


def profile(request: GenerationRequest, vocab_size: int) -> Profile:
    """Work out a sequence's constants. Token ids outside 0..vocab_size-1 are dropped."""
    sampling, num_prompt = request.sampling, len(request.prompt_ids)

    def known(token_ids: Iterable[int]) -> tuple[int, ...]:
        return tuple(token_id for token_id in token_ids if 0 <= token_id < vocab_size)

    eos = known(request.eos_token_ids)
    # Transformers does not let bad words forbid the end of text
    bad_words_ids = [word for word in sampling.bad_words_ids if word not in {(one,) for one in eos}]
    single = [word[0] for word in (*bad_words_ids, *sampling.bad_words) if len(word) == 1]
    # of several values for one token the last one counts
    bias = {
        token_id: value for token_id, value in dict(sampling.logit_bias).items() if 0 <= token_id < vocab_size
    }
    return Profile(
        sampling=sampling,
        num_prompt=num_prompt,
        never_ids=known([*sampling.suppress_tokens, *single]),
        never_first_ids=known(sampling.begin_suppress_tokens),
        words=_words(bad_words_ids, sampling.bad_words, num_prompt, vocab_size),
        min_new_tokens=sampling.min_new_tokens if eos else 0,
        eos_token_ids=eos,
        bias_ids=np.array(list(bias), dtype=np.int64),
        bias_values=np.array(list(bias.values()), dtype=np.float64),
        top_k=sampling.top_k if sampling.top_k < vocab_size else 0,
        draw_state=sequence_state(sampling.seed, sampling.sequence_index),
    )


def _words(
    anywhere: Sequence[tuple[int, ...]], generated: IdLists, num_prompt: int, vocab_size: int
) -> Words:
    """The words of several ids that are all in the vocabulary."""
    # Transformers lets a word pass that would fill the whole sequence
    starts = [(word, 1) for word in anywhere] + [(word, num_prompt) for word in generated]
    return Words.of(
        [one for one in starts if len(one[0]) > 1 and all(0 <= id_ < vocab_size for id_ in one[0])]
    )
