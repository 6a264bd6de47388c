"""The filters that change the scores of tokens before one is chosen, and the draw, as one function each.

All of them only work on the device: parameters are tensors there, nothing is read back, no size depends on
values. So none of them makes the host wait (`torch.where` with a number, indexing with a mask and ``nonzero``
would). None changes its input.

Shape suffixes: F rows that a filter works on, S rows of the history, V vocabulary, C positions of a
history, T positions read of it, N words and P ids before the last of the longest, 1 a column of one value a
row.
"""

import torch


def read_history(
    history_SC: torch.Tensor, slots_F: torch.Tensor, starts_F: torch.Tensor, ends_F: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of some sequences.

    Args:
        history_SC: Integers, ids of the vocabulary at all positions below the rows' ends.
        slots_F: int64, which row of the history.
        starts_F: int64, the first position wanted, >= 0.
        ends_F: int64, the position after the last one wanted, >= 1.
        width: The largest end, T.

    Returns:
        ids_FT: int64; at positions that are not wanted the sequence's first id, which is always valid.
        is_wanted_FT: bool.
    """
    ids_FT = history_SC[:, :width].index_select(0, slots_F).long()
    position_T = torch.arange(width, device=history_SC.device)
    is_wanted_FT = (position_T >= starts_F.unsqueeze(1)) & (position_T < ends_F.unsqueeze(1))
    return torch.where(is_wanted_FT, ids_FT, ids_FT[:, :1]), is_wanted_FT


def subtract_penalties(
    added_FV: torch.Tensor,
    ids_FT: torch.Tensor,
    counts_FT: torch.Tensor,
    presence_F1: torch.Tensor,
    frequency_F1: torch.Tensor,
) -> torch.Tensor:
    """Subtract OpenAI's penalties from what will be added to the scores.

    Args:
        added_FV: float64.
        ids_FT: int64; one may come several times.
        counts_FT: float64, 1 where the id was generated, 0 where it does not count.
        presence_F1: float64, subtracted from every token that counts.
        frequency_F1: float64, the same times how often the token counts.
    """
    total_FV = torch.zeros_like(added_FV).scatter_add_(1, ids_FT, counts_FT)
    total_FT = total_FV.gather(1, ids_FT)
    penalty_FT = (presence_F1 + frequency_F1 * total_FT).masked_fill(total_FT == 0, 0.0)
    # where an id comes several times, the same number is written several times
    return added_FV.scatter(1, ids_FT, added_FV.gather(1, ids_FT) - penalty_FT)


def penalise_repetition(
    scores_FV: torch.Tensor, ids_FT: torch.Tensor, penalties_F1: torch.Tensor
) -> torch.Tensor:
    """Divide positive scores of the given tokens by the penalty, multiply negative ones."""
    scores_FT = scores_FV.gather(1, ids_FT)
    penalised_FT = torch.where(scores_FT < 0, scores_FT * penalties_F1, scores_FT / penalties_F1)
    return scores_FV.scatter(1, ids_FT, penalised_FT)


def forbid_repeated_ngrams(
    scores_FV: torch.Tensor,
    ids_FT: torch.Tensor,
    ends_F1: torch.Tensor,
    sizes_F1: torch.Tensor,
    num_before: int,
) -> torch.Tensor:
    """Forbid every token that would end a sequence of so many tokens that is there already.

    Args:
        scores_FV: float32.
        ids_FT: int64, as `read_history` gives them from position 0 on.
        ends_F1: int64, how many of them count.
        sizes_F1: int64, tokens of such a sequence, 1 to the row's end.
        num_before: At least 1, and the largest size less one.
    """
    num_read, device = ids_FT.shape[1], ids_FT.device
    position_T, before_K = torch.arange(num_read, device=device), torch.arange(num_before, device=device)
    padded = torch.nn.functional.pad(ids_FT, (num_before, 0))
    # compares the ids before each position with those before the token to be chosen
    before_FTK = padded.unfold(1, num_before, 1)[:, :num_read]
    last_F1K = padded.gather(1, ends_F1 + before_K).unsqueeze(1)
    does_not_count_F1K = (before_K <= num_before - sizes_F1).unsqueeze(1)
    is_same_FT = ((before_FTK == last_F1K) | does_not_count_F1K).all(dim=-1)
    is_forbidden_FT = is_same_FT & (position_T >= sizes_F1 - 1) & (position_T < ends_F1)
    return scores_FV.scatter_reduce(1, ids_FT, _ceilings(is_forbidden_FT, scores_FV), "amin")


def forbid_words(
    scores_FV: torch.Tensor,
    history_SC: torch.Tensor,
    prefixes_NP: torch.Tensor,
    slots_N: torch.Tensor,
    ends_N: torch.Tensor,
    lengths_N: torch.Tensor,
    places_N: torch.Tensor,
) -> torch.Tensor:
    """Forbid the last token of each word whose other tokens are the last ones of its row.

    Args:
        scores_FV: float32.
        history_SC: Integers, ids of the vocabulary at all positions below the rows' ends.
        prefixes_NP: int64, the other tokens, right-aligned.
        slots_N: int64, which row of the history.
        ends_N: int64, the position after its last token, at least the word's length.
        lengths_N: int64, how many other tokens, 1..P.
        places_N: int64, where the last token is in the flat scores.
    """
    num_before = prefixes_NP.shape[1]
    before_P = torch.arange(num_before, device=prefixes_NP.device)
    position_NP = (ends_N.unsqueeze(1) + before_P - num_before).clamp(min=0)
    last_NP = history_SC[slots_N.unsqueeze(1), position_NP]
    does_not_count_NP = before_P < num_before - lengths_N.unsqueeze(1)
    is_forbidden_N = ((last_NP == prefixes_NP) | does_not_count_NP).all(dim=-1)
    ceilings_N = _ceilings(is_forbidden_N, scores_FV)
    return scores_FV.flatten().scatter_reduce(0, places_N, ceilings_N, "amin").view_as(scores_FV)


def _ceilings(is_forbidden: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The highest value that each score may have: -inf where it is forbidden, else anything."""
    return like.new_full(is_forbidden.shape, float("inf")).masked_fill(is_forbidden, float("-inf"))


def divide_by_temperature(scores_FV: torch.Tensor, temperatures_F1: torch.Tensor) -> torch.Tensor:
    """Divide scores by temperatures, which are float32."""
    return scores_FV / temperatures_F1


def keep_top_k(scores_FV: torch.Tensor, last_F1: torch.Tensor, num_largest: int) -> torch.Tensor:
    """Keep the k largest and whatever equals the smallest of them.

    Args:
        scores_FV: float32.
        last_F1: int64, k - 1.
        num_largest: The largest k, at most V.
    """
    largest_FK = scores_FV.topk(num_largest, dim=-1).values
    return scores_FV.masked_fill(scores_FV < largest_FK.gather(1, last_F1), float("-inf"))


def keep_top_p(scores_FV: torch.Tensor, rests_F1: torch.Tensor) -> torch.Tensor:
    """Drop the least likely tokens that together have no more than 1 - p; the last one always stays.

    Args:
        scores_FV: float32.
        rests_F1: float32, 1 - p, formed in float64 and rounded once, as Transformers' scalar is.
    """
    sorted_FV, order_FV = scores_FV.sort(dim=-1, stable=True)
    drop_FV = sorted_FV.softmax(dim=-1).cumsum(dim=-1) <= rests_F1
    drop_FV[:, -1].fill_(False)
    return _drop(scores_FV, order_FV, drop_FV)


def keep_min_p(scores_FV: torch.Tensor, shares_F1: torch.Tensor) -> torch.Tensor:
    """Drop tokens that have less than this share of the likeliest one's probability, float32."""
    probs_FV = scores_FV.softmax(dim=-1)
    limit_F1 = shares_F1 * probs_FV.amax(dim=-1, keepdim=True)
    return scores_FV.masked_fill(probs_FV < limit_F1, float("-inf"))


def keep_typical(scores_FV: torch.Tensor, masses_F1: torch.Tensor) -> torch.Tensor:
    """Keep the tokens whose surprise is nearest the entropy, until they have this much probability."""
    logp_FV = scores_FV.log_softmax(dim=-1)
    entropy_F1 = -(logp_FV * logp_FV.exp()).nansum(dim=-1, keepdim=True)
    distance_FV, order_FV = (-logp_FV - entropy_F1).abs().sort(dim=-1, stable=True)
    mass_FV = scores_FV.gather(1, order_FV).softmax(dim=-1).cumsum(dim=-1)
    last_F1 = (mass_FV < masses_F1).sum(dim=-1, keepdim=True)
    drop_FV = distance_FV > distance_FV.gather(1, last_F1.clamp(max=scores_FV.shape[1] - 1))
    drop_FV[:, 0].fill_(False)
    return _drop(scores_FV, order_FV, drop_FV)


def _drop(scores_FV: torch.Tensor, order_FV: torch.Tensor, drop_FV: torch.Tensor) -> torch.Tensor:
    return scores_FV.masked_fill(drop_FV.scatter(1, order_FV, drop_FV), float("-inf"))


def draw(scores_FV: torch.Tensor, uniforms_F1: torch.Tensor) -> torch.Tensor:
    """The first token whose cumulative probability is above the uniform number, int64 [F].

    Sums of floats round: ``u * total`` can round up to the total, and a parallel sum need not rise
    everywhere. So only tokens that have a probability may win, and the last of them wins by default.

    Args:
        scores_FV: float32.
        uniforms_F1: float64, in [0, 1).
    """
    probs_FV = scores_FV.double().softmax(dim=-1)
    cumulative_FV = probs_FV.cumsum(dim=-1)
    target_F1 = uniforms_F1 * cumulative_FV[:, -1:]
    is_possible_FV = probs_FV > 0
    is_hit_FV = (cumulative_FV > target_F1) & is_possible_FV
    last_F = scores_FV.shape[1] - 1 - is_possible_FV.flip(-1).int().argmax(dim=-1)
    return torch.where(is_hit_FV.any(dim=-1), is_hit_FV.int().argmax(dim=-1), last_F)
