"""Makes a tokenizer from a model directory's files, in a process that asks Transformers where that is needed.

That process is `gptj_serve.serving.tokenizing.convert`; importing this module does not import Transformers.
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

    It takes seconds if ``tokenizer.json`` does not say everything.

    Raises:
        StartupError: Files are missing or cannot be read, or Transformers makes no tokenizer from them.
    """
    plain = read_plain(model_dir)
    if plain is not None:
        return plain
    with tempfile.TemporaryDirectory(prefix="gptj-tokenizer-") as directory:
        ended = subprocess.run(command(model_dir, Path(directory)), capture_output=True, check=False)
        return outcome(Path(directory), ended.returncode)


def command(model_dir: Path, directory: Path) -> list[str]:
    """The command of the process that writes what Transformers makes from a model directory's files.

    Args:
        model_dir: Where config.json and the tokenizer's files are.
        directory: Where the process writes to.
    """
    module = "gptj_serve.serving.tokenizing.convert"
    return [sys.executable, "-m", module, "--model-dir", str(model_dir), "--directory", str(directory)]


def outcome(directory: Path, exit_code: int | None) -> PreparedTokenizer:
    """Read what the process wrote.

    Args:
        directory: Where the process wrote to.
        exit_code: The process's exit code.

    Raises:
        StartupError: There is no tokenizer; the message says why.
    """
    if exit_code == 0:
        return PreparedTokenizer.load(directory)
    unknown = f"reading the tokenizer through Transformers ended with exit code {exit_code}"
    raise StartupError(run_dir.start_failure(directory) or unknown)
