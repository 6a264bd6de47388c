"""Plans which filters the rows of a step pass, in which order, and with which parameters.

First comes what OpenAI's API adds to logits (bias, presence and frequency penalties). Then comes the order of
``GenerationMixin._get_logits_processor``: repetition penalty, no n-gram twice, bad words, no end of sequence
before ``min_new_tokens``, suppressed tokens. When sampling, temperature, top-k, top-p, min-p and typical-p
follow, and then the draw.

The host plans with parameters and lengths, but without token ids. All numbers go to the device in one
transfer (`gptj_serve.engine.sampling.packing`), where each filter only works on the rows that asked for it.

Shape suffixes: R rows that need more than the argmax of their logits, F those of them that a filter works on,
V vocabulary, S rows of the history, C its positions, W words of the transfer.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptj_serve.engine.sampling import score_filters
from gptj_serve.engine.sampling.packing import Field, PickedRows, Upload
from gptj_serve.engine.sampling.profile import Profile
from gptj_serve.engine.sampling.uniform import uniform_at
from gptj_serve.request import SamplingParams

EVERY_FILTER = SamplingParams(
    2,
    1,
    do_sample=True,
    temperature=0.9,
    top_k=5,
    top_p=0.9,
    min_p=0.01,
    typical_p=0.9,
    repetition_penalty=1.1,
    no_repeat_ngram_size=2,
    bad_words_ids=((0, 0),),
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias=((0, 1.0),),
)
"""A request that uses every filter, for the warm-up: a GPU loads each kernel at its first use."""


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row that chooses a token.

    Attributes:
        profile: The constants of the row's sequence.
        slot: The row of the history that has its token ids, 0..S-1.
        end: How many ids there are, prompt and generated, 1..C-1.
    """

    profile: Profile
    slot: int
    end: int

    @property
    def num_generated(self) -> int:
        """How many tokens were generated so far, >= 0."""
        return self.end - self.profile.num_prompt

    @property
    def takes_argmax(self) -> bool:
        """Whether only the argmax of the row's logits is needed."""
        return not self.profile.sampling.changes_scores and self.num_generated >= self.profile.min_new_tokens

    @property
    def held_back(self) -> tuple[int, ...]:
        """Ids that must not be chosen now, whatever the tokens so far are."""
        profile, num_generated = self.profile, self.num_generated
        eos = profile.eos_token_ids if num_generated < profile.min_new_tokens else ()
        return (*profile.never_ids, *(profile.never_first_ids if num_generated == 0 else ()), *eos)


Apply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Makes new scores_FV of scores_FV (float32), the uploaded words_W and history_SC."""

_Plan = Callable[[Sequence[PlannedRow], int, Upload], Apply | None]
"""Plans a filter for its rows, the vocabulary's size and the upload; None if there is nothing to do."""


@dataclass(frozen=True, slots=True)
class _Filter:
    picked: PickedRows
    apply: Apply


@dataclass(frozen=True, slots=True)
class ScorePlan:
    """What happens to the scores of some rows, from logits to chosen tokens; made by `plan_scores`."""

    filters: tuple[_Filter, ...]
    draw: _Filter | None

    def process(
        self, scores_RV: torch.Tensor, words_W: torch.Tensor, history_SC: torch.Tensor
    ) -> torch.Tensor:
        """Apply penalties and filters.

        Args:
            scores_RV: float32 logits; not changed.
            words_W: The upload on the scores' device.
            history_SC: Token ids on that device, integers, valid below each row's end.

        Returns:
            float32 scores, -inf where a token cannot be chosen.
        """
        for one in self.filters:
            changed_FV = one.apply(one.picked.select(scores_RV, words_W), words_W, history_SC)
            scores_RV = one.picked.replace(scores_RV, changed_FV, words_W)
        return scores_RV

    def choose(
        self, scores_RV: torch.Tensor, words_W: torch.Tensor, history_SC: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply penalties and filters, then choose.

        Returns:
            best_R: float32, the largest score.
            ids_R: int64, the token. Where the best score is not finite, it has no meaning, but is in the
                vocabulary.
        """
        scores_RV = self.process(scores_RV, words_W, history_SC)
        # max takes a NaN for the largest, so it tells of NaN, +inf and a row of -inf alike
        best_R, ids_R = scores_RV.max(dim=-1)
        if self.draw is None:
            return best_R, ids_R
        picked = self.draw.picked
        drawn_F = self.draw.apply(picked.select(scores_RV, words_W), words_W, history_SC)
        return best_R, picked.replace(ids_R, drawn_F, words_W)


def plan_scores(rows: Sequence[PlannedRow], vocab_size: int, upload: Upload) -> ScorePlan:
    """Plan a step.

    Args:
        rows: One or more, in the order of the scores.
        vocab_size: Width of the scores.
        upload: Gets all numbers that the device needs; it must be sent before the plan is carried out.
    """
    wanted = defaultdict[str, list[int]](list)
    for r, row in enumerate(rows):
        for name in row.profile.uses:
            wanted[name].append(r)

    def planned(name: str, plan: _Plan) -> _Filter | None:
        asking = wanted.get(name, [])
        apply = plan([rows[r] for r in asking], vocab_size, upload) if asking else None
        return _Filter(PickedRows.of(asking, len(rows), upload), apply) if apply else None

    filters = [planned(name, plan) for name, plan in _FILTERS.items()]
    return ScorePlan(tuple(filter(None, filters)), planned("draw", _DRAW))


def _column(field: Field, words_W: torch.Tensor) -> torch.Tensor:
    return field.of(words_W).unsqueeze(1)


def _by_value(
    value_of: Callable[[PlannedRow], float],
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    dtype: torch.dtype = torch.float32,
) -> _Plan:
    """Filters that need scores and a number for each row."""

    def plan(rows: Sequence[PlannedRow], _: int, upload: Upload) -> Apply:
        field = upload.add([value_of(row) for row in rows], dtype)
        return lambda scores_FV, words_W, _: change(scores_FV, _column(field, words_W))

    return plan


def _top_k(rows: Sequence[PlannedRow], _: int, upload: Upload) -> Apply:
    field = upload.add([row.profile.top_k - 1 for row in rows], torch.int64)
    num_largest = max(row.profile.top_k for row in rows)
    return lambda scores_FV, words_W, _: score_filters.keep_top_k(
        scores_FV, _column(field, words_W), num_largest
    )


def _held_back(rows: Sequence[PlannedRow], vocab_size: int, upload: Upload) -> Apply | None:
    places = [f * vocab_size + token_id for f, row in enumerate(rows) for token_id in row.held_back]
    if not places:
        return None
    field = upload.add(places, torch.int64)
    return lambda scores_FV, words_W, _: (
        scores_FV.flatten().index_fill(0, field.of(words_W), float("-inf")).view_as(scores_FV)
    )


def _repetition(rows: Sequence[PlannedRow], _: int, upload: Upload) -> Apply:
    penalties = upload.add([row.profile.sampling.repetition_penalty for row in rows], torch.float32)
    window = _Window.of(rows, upload)

    def apply(scores_FV: torch.Tensor, words_W: torch.Tensor, history_SC: torch.Tensor) -> torch.Tensor:
        ids_FT, _ = window.read(words_W, history_SC)
        return score_filters.penalise_repetition(scores_FV, ids_FT, _column(penalties, words_W))

    return apply


def _ngrams(rows: Sequence[PlannedRow], _: int, upload: Upload) -> Apply:
    # in a sequence of fewer tokens, nothing can come twice
    sizes = [min(row.profile.sampling.no_repeat_ngram_size, row.end + 1) for row in rows]
    field = upload.add(sizes, torch.int64)
    window = _Window.of(rows, upload)
    num_before = max(2, *sizes) - 1

    def apply(scores_FV: torch.Tensor, words_W: torch.Tensor, history_SC: torch.Tensor) -> torch.Tensor:
        ids_FT, _ = window.read(words_W, history_SC)
        columns = (_column(window.ends, words_W), _column(field, words_W))
        return score_filters.forbid_repeated_ngrams(scores_FV, ids_FT, *columns, num_before)

    return apply


def _words(rows: Sequence[PlannedRow], vocab_size: int, upload: Upload) -> Apply | None:
    fitting = [row.profile.words.that_fit(row.end) for row in rows]
    num_words = [len(words.last_ids) for words in fitting]
    if not any(num_words):
        return None
    width = max(words.prefixes.shape[1] for words in fitting)
    prefixes = [np.pad(words.prefixes, ((0, 0), (width - words.prefixes.shape[1], 0))) for words in fitting]
    prefix_field = upload.add(np.concatenate(prefixes).reshape(-1), torch.int64)
    columns = (
        np.repeat([row.slot for row in rows], num_words),
        np.repeat([row.end for row in rows], num_words),
        np.concatenate([words.lengths for words in fitting]),
        np.concatenate([f * vocab_size + words.last_ids for f, words in enumerate(fitting)]),
    )
    fields = [upload.add(column, torch.int64) for column in columns]

    def apply(scores_FV: torch.Tensor, words_W: torch.Tensor, history_SC: torch.Tensor) -> torch.Tensor:
        prefixes_NP = prefix_field.of(words_W).view(-1, width)
        return score_filters.forbid_words(
            scores_FV, history_SC, prefixes_NP, *(field.of(words_W) for field in fields)
        )

    return apply


def _additions(rows: Sequence[PlannedRow], vocab_size: int, upload: Upload) -> Apply:
    """Plan bias and OpenAI's penalties, which are summed in float64 and rounded once."""
    places = np.concatenate([f * vocab_size + row.profile.bias_ids for f, row in enumerate(rows)])
    place_field = upload.add(places, torch.int64)
    value_field = upload.add(np.concatenate([row.profile.bias_values for row in rows]), torch.float64)
    asked = [row.profile.sampling for row in rows]
    presence = upload.add([one.presence_penalty for one in asked], torch.float64)
    frequency = upload.add([one.frequency_penalty for one in asked], torch.float64)
    has_penalties = any(one.presence_penalty or one.frequency_penalty for one in asked)
    window = _Window.of(rows, upload, of_generated=True) if has_penalties else None

    def apply(scores_FV: torch.Tensor, words_W: torch.Tensor, history_SC: torch.Tensor) -> torch.Tensor:
        nothing_FV = torch.zeros_like(scores_FV, dtype=torch.float64)
        place_N, value_N = place_field.of(words_W), value_field.of(words_W)
        added_FV = nothing_FV.flatten().scatter(0, place_N, value_N).view_as(scores_FV)
        if window is not None:
            ids_FT, is_generated_FT = window.read(words_W, history_SC)
            columns = (_column(presence, words_W), _column(frequency, words_W))
            added_FV = score_filters.subtract_penalties(added_FV, ids_FT, is_generated_FT.double(), *columns)
        return scores_FV + added_FV.float()

    return apply


@dataclass(frozen=True, slots=True)
class _Window:
    """Which positions of the history are read, for each row of a filter."""

    slots: Field
    starts: Field
    ends: Field
    width: int

    @staticmethod
    def of(rows: Sequence[PlannedRow], upload: Upload, *, of_generated: bool = False) -> "_Window":
        starts = [row.profile.num_prompt if of_generated else 0 for row in rows]
        ends = [row.end for row in rows]
        slots = upload.add([row.slot for row in rows], torch.int64)
        return _Window(slots, upload.add(starts, torch.int64), upload.add(ends, torch.int64), max(ends))

    def read(self, words_W: torch.Tensor, history_SC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slots_F, starts_F, ends_F = (field.of(words_W) for field in (self.slots, self.starts, self.ends))
        return score_filters.read_history(history_SC, slots_F, starts_F, ends_F, self.width)


_FILTERS: Mapping[str, _Plan] = {
    "additions": _additions,
    "repetition": _repetition,
    "ngrams": _ngrams,
    "words": _words,
    "held_back": _held_back,
    "temperature": _by_value(
        lambda row: row.profile.sampling.temperature, lambda *all_: score_filters.divide_by_temperature(*all_)
    ),
    "top_k": _top_k,
    "top_p": _by_value(
        lambda row: 1 - row.profile.sampling.top_p, lambda *all_: score_filters.keep_top_p(*all_)
    ),
    "min_p": _by_value(lambda row: row.profile.sampling.min_p, lambda *all_: score_filters.keep_min_p(*all_)),
    "typical_p": _by_value(
        lambda row: row.profile.sampling.typical_p, lambda *all_: score_filters.keep_typical(*all_)
    ),
}
"""The filters in their order. The names are those in `gptj_serve.engine.sampling.profile.Profile.uses`."""

_DRAW = _by_value(
    lambda row: uniform_at(row.profile.draw_state, row.num_generated),
    lambda *all_: score_filters.draw(*all_),
    torch.float64,
)
