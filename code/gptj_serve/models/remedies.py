"""The commands that messages give for mending a model directory; they can be pasted into a shell."""

import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

GPT_J = "EleutherAI/gpt-j-6b"
_GPT_J_REVISION = "float16"


def default_revision(repository: str) -> str:
    """The branch of a repository of the hub; GPT-J-6B has a branch in half precision."""
    return _GPT_J_REVISION if repository.lower() == GPT_J.lower() else "main"


def download_command(repository: str, directory: str, files: Sequence[str] = ()) -> str:
    """A command that fetches a model from the hub, or only some of its files."""
    hf = Path(sys.executable).with_name("hf")
    revision = "" if files or default_revision(repository) == "main" else f"--revision {_GPT_J_REVISION} "
    names = "".join(f"{name} " for name in files)
    program = shlex.quote(str(hf)) if hf.exists() else "hf"
    return f"{program} download {repository} {names}{revision}--local-dir {shlex.quote(directory)}"


def extract_command(paths: Sequence[Path], directory: Path, part: str = "", key: str = "name") -> str:
    """A command that writes tensors of files into a model.safetensors, which is read first.

    Args:
        paths: Pickles, or safetensors files; none of them the one that is written.
        directory: Where that file goes.
        part: Python that follows a file's content, for example ``['model']``.
        key: A Python expression for the new name of the tensor ``name``.
    """
    load = (
        "s.load_file(f)" if paths[0].suffix == ".safetensors" else "torch.load(f, 'cpu', weights_only=True)"
    )
    target = str(directory / "model.safetensors")
    return _python(
        f"import torch, safetensors.torch as s; files = {[str(path) for path in paths]}; "
        f"s.save_file({{{key}: t.clone() for f in files for name, t in {load}{part}.items() "
        f"if isinstance(t, torch.Tensor)}}, {target!r}, {{'format': 'pt'}})"
    )


def unwrap_command(paths: Sequence[Path], wrappers: Sequence[str]) -> str:
    """A command that removes what wrappers have put before and into tensors' names."""
    directory, aside = paths[0].parent, paths[0].parent / "wrapped"
    key = "name" + "".join(f".replace({wrapper!r}, '')" for wrapper in wrappers)
    names = sorted({*paths, *directory.glob(f"*{paths[0].suffix}.index.json")})
    moved = " ".join(shlex.quote(str(name)) for name in names)
    quoted = shlex.quote(str(aside))
    extract = extract_command([aside / path.name for path in paths], directory, key=key)
    return f"mkdir {quoted} && mv {moved} {quoted} && {extract}"


def merge_command(adapter: Path, merged: Path) -> str:
    """A command that merges an adapter into its base model, and puts the base's tokenizer beside it."""
    return f"{_program()} -m pip install peft && " + _python(
        "from peft import AutoPeftModelForCausalLM as M; from transformers import AutoTokenizer as T; "
        f"m = M.from_pretrained({str(adapter)!r}, dtype='auto'); b = m.peft_config['default']; "
        f"m.merge_and_unload().save_pretrained({str(merged)!r}); "
        f"T.from_pretrained(b.base_model_name_or_path).save_pretrained({str(merged)!r})"
    )


def tokenizer_command(directory: Path) -> str:
    """Where to get a missing tokenizer from."""
    return (
        "copy the tokenizer's files of the model that this one was trained from; those of GPT-J itself: "
        + download_command(GPT_J, str(directory), ("tokenizer.json", "tokenizer_config.json"))
    )


def move_command(path: Path, target: Path) -> str:
    """A command that gives a file another name."""
    return f"mv {shlex.quote(str(path))} {shlex.quote(str(target))}"


def save_command(module: Path, directory: Path) -> str:
    """A command that saves a whole pickled model (it runs what is in the file) as a model directory."""
    return _python(
        f"import torch; torch.load({str(module)!r}, 'cpu', weights_only=False)"
        f".save_pretrained({str(directory)!r})"
    )


def _python(script: str) -> str:
    # the program has single quotes, so double quotes around it keep the command readable where possible
    is_plain = not set(script) & set('"$`\\!')
    quoted = f'"{script}"' if is_plain else shlex.quote(script)
    return f"{_program()} -c {quoted}"


def _program() -> str:
    """How a shell calls Python: this interpreter if it has PyTorch, since the one on PATH often has none."""
    return shlex.quote(sys.executable) if importlib.util.find_spec("torch") else "python3"
