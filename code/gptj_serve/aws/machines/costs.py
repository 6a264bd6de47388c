"""Says how fast a token is on each instance type and what it costs: measured where it was, else computed.

``python -m gptj_serve.aws.machines.costs`` prints the table of docs/operations.md.

A decoded token reads every weight once, and the cache of all tokens before it; nothing else takes time that
counts. So n sequences of a length make n tokens in (`WEIGHTS_GB` + n x length x `CACHE_GB`) / (`SHARE` x
bandwidth) seconds. An H100 reads `SHARE` of its data sheet's bandwidth (docs/benchmarks). Prompts are not
counted, because they are bound by computing.
"""

from dataclasses import dataclass

from gptj_serve.aws.machines.capacity import capacity
from gptj_serve.aws.machines.instances import Gpu, InstanceType, find_instance

SHARE = 0.9
WEIGHTS_GB = 11.69
"""Gigabytes of weights that are read for a token, in FP16."""
CACHE_GB = 458_752e-9
"""Gigabytes of cache that are read for each token before it."""

TYPICAL_TOKENS = 250
"""Tokens before a token on average, in a request of 200 tokens of prompt and 100 of answer."""

TOGETHER = 16
"""Requests at once in the table; fewer where no more fit."""

REQUEST_TOKENS = 512

INSTANCES = (
    "ml.g4dn.xlarge",
    "ml.g4dn.2xlarge",
    "ml.g5.xlarge",
    "ml.g5.2xlarge",
    "ml.g6.2xlarge",
    "ml.g6e.2xlarge",
    "ml.p3.2xlarge",
    "ml.p4d.24xlarge",
    "ml.p4de.24xlarge",
    "ml.p5.4xlarge",
    "ml.p5e.48xlarge",
)
"""The smallest type of each family, and the default type."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second.

    Attributes:
        alone: Tokens a second of one request.
        num_together: How many requests there are in the next figure.
        together: Tokens a second of all these requests at once.
        is_measured: Whether it was measured, not computed.
    """

    alone: float
    num_together: int
    together: float
    is_measured: bool


MEASURED = {"H100 80GB": Speed(249.0, 16, 2914.0, True)}
"""Measured speeds by GPU: whole calls over HTTP, 50 x 200 tokens alone and 200 x 100 together."""


def speed(gpu: Gpu, num_together: int) -> Speed:
    """How fast a GPU is, with one request and with several."""
    return MEASURED.get(gpu.name) or Speed(
        computed(gpu, 1, 0), num_together, computed(gpu, num_together, TYPICAL_TOKENS), False
    )


def computed(gpu: Gpu, num_sequences: int, num_tokens: int) -> float:
    """Tokens a second of all sequences together, from the memory's bandwidth.

    Args:
        gpu: The GPU.
        num_sequences: Sequences at once, from 1; up to about 16 the memory is the limit on these GPUs.
        num_tokens: Tokens of each sequence before the next one.
    """
    gigabytes = WEIGHTS_GB + num_sequences * num_tokens * CACHE_GB
    return num_sequences * SHARE * gpu.bandwidth_gb_s / gigabytes


def usd_a_million(usd_an_hour: float, tokens_a_second: float) -> float:
    """The price of a million tokens if the instance is never idle."""
    return usd_an_hour / 3600 / tokens_a_second * 1e6


def table() -> str:
    """The table of docs/operations.md, as Markdown."""
    head = (
        "| instance type | GPU | $ an hour | one request: tokens/s | ms a token | $ a million tokens "
        "| n at once | all together: tokens/s | $ a million tokens | |"
    )
    found = (find_instance(name) for name in INSTANCES)
    rows = [_row(one, one.gpu) for one in found if one and one.gpu]
    return "\n".join((head, "|" + " --- |" * 10, *rows))


def _row(instance: InstanceType, gpu: Gpu) -> str:
    it = speed(gpu, min(TOGETHER, capacity({}, instance, REQUEST_TOKENS).num_requests))
    price = instance.price_usd_hour
    gpus = gpu.name if instance.num_gpus == 1 else f"{gpu.name}, 1 of {instance.num_gpus} used"
    cells = (
        instance.name,
        gpus,
        "" if price is None else f"{price:.2f}",
        f"{it.alone:.0f}",
        f"{1000 / it.alone:.1f}",
        _price(price, it.alone),
        str(it.num_together),
        f"{it.together:.0f}",
        _price(price, it.together),
        "measured" if it.is_measured else "computed",
    )
    return "| " + " | ".join(cells) + " |"


def _price(usd_an_hour: float | None, tokens_a_second: float) -> str:
    return "" if usd_an_hour is None else f"{usd_a_million(usd_an_hour, tokens_a_second):.2f}"


if __name__ == "__main__":
    print(table())
