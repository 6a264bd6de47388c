"""What a model directory's tokenizer files say, as one ``tokenizer.json`` and a few facts beside it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

_TOKENIZER = "tokenizer.json"
_FACTS = "facts.json"


@dataclass(frozen=True, slots=True)
class PreparedTokenizer:
    """A tokenizer as Transformers' ``AutoTokenizer`` makes it of a directory's files.

    Attributes:
        definition: A ``tokenizer.json`` that says all, what is added to prompts included.
        eos_token_id: The token that the tokenizer itself names as the end of a text, if it does.
        splits_special_tokens: A special token's text in a prompt is text like any other.
    """

    definition: str = field(repr=False)
    eos_token_id: int | None = None
    splits_special_tokens: bool = False

    def save(self, directory: Path) -> None:
        """Write it where `load` finds it.

        Args:
            directory: Made if it is not there.
        """
        facts = asdict(self)
        directory.mkdir(exist_ok=True)
        (directory / _TOKENIZER).write_text(facts.pop("definition"), encoding="utf-8")
        (directory / _FACTS).write_text(json.dumps(facts), encoding="utf-8")

    @staticmethod
    def load(directory: Path) -> "PreparedTokenizer":
        """Read back what `save` wrote."""
        definition = (directory / _TOKENIZER).read_text(encoding="utf-8")
        return PreparedTokenizer(definition, **json.loads((directory / _FACTS).read_text(encoding="utf-8")))
