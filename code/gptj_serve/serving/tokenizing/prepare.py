"""Makes one tokenizer of a model directory's files; where need be, by a process that asks Transformers.

The process is `gptj_serve.serving.tokenizing.convert`. What imports this module imports no Transformers.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from gptj_serve import run_dir
from gptj_serve.errors import StartupError
from gptj_serve.serving.tokenizing import PreparedTokenizer
from gptj_serve.serving.tokenizing.files import read_plain


def prepare(model_dir: Path) -> PreparedTokenizer:
    """The tokenizer of a model directory.

    Takes seconds where ``tokenizer.json`` does not say all.

    Raises:
        StartupError: Files are missing or cannot be read, or Transformers makes no tokenizer of them.
    """
    plain = read_plain(model_dir)
    if plain is not None:
        return plain
    with tempfile.TemporaryDirectory(prefix="gptj-tokenizer-") as directory:
        ended = subprocess.run(command(model_dir, Path(directory)), capture_output=True, check=False)
        return outcome(Path(directory), ended.returncode)


def command(model_dir: Path, directory: Path) -> list[str]:
    """How to start the process that writes what Transformers makes of a model directory's files.

    Args:
        model_dir: Where config.json and the tokenizer's files are.
        directory: Where it writes to.
    """
    module = "gptj_serve.serving.tokenizing.convert"
    return [sys.executable, "-m", module, "--model-dir", str(model_dir), "--directory", str(directory)]


def outcome(directory: Path, exit_code: int | None) -> PreparedTokenizer:
    """What the process wrote.

    Args:
        directory: Where it wrote to.
        exit_code: Its exit code.

    Raises:
        StartupError: There is no tokenizer; says why.
    """
    if exit_code == 0:
        return PreparedTokenizer.load(directory)
    unknown = f"reading the tokenizer through Transformers ended with exit code {exit_code}"
    raise StartupError(run_dir.start_failure(directory) or unknown)
