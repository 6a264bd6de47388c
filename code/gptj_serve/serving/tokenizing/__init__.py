"""What a model directory's tokenizer files say, as a ``tokenizer.json`` and a few facts beside it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

_FILE = "prepared.json"


@dataclass(frozen=True, slots=True)
class PreparedTokenizer:
    """A tokenizer as Transformers' ``AutoTokenizer`` makes it from a directory's files.

    Attributes:
        definition: A ``tokenizer.json`` that says everything, also what is added to prompts.
        eos_token_id: The token that the tokenizer itself names as the end of a text, if it does.
        splits_special_tokens: Whether a special token's text in a prompt is text like any other.
    """

    definition: str = field(repr=False)
    eos_token_id: int | None = None
    splits_special_tokens: bool = False

    def save(self, directory: Path) -> None:
        """Write it where `load` finds it.

        Args:
            directory: The directory, which is made if it is not there.
        """
        directory.mkdir(exist_ok=True)
        (directory / _FILE).write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @staticmethod
    def load(directory: Path) -> "PreparedTokenizer":
        """Read back what `save` wrote."""
        return PreparedTokenizer(**json.loads((directory / _FILE).read_text(encoding="utf-8")))
