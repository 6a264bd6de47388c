"""Variables and scripts that other images of SageMaker know are named in the log, one warning each."""

from pathlib import Path

import pytest

from gptj_serve.host.other_images import has_program, what_is_not_used
from gptj_serve.serving import mms


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "see SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS"),
        ("HF_MODEL_ID", "see GPTJ_MODEL_DIR"),
        ("HF_TASK", "HF_TASK is not used here"),
        ("SM_NUM_GPUS", "TENSOR_PARALLEL_DEGREE"),
        ("MAX_TOTAL_TOKENS", "GPTJ_MAX_CONTEXT"),
    ],
)
def test_variables_of_other_images(name: str, told: str) -> None:
    assert what_is_not_used({name: " "}, "mms", ()) == []
    (sentence,) = what_is_not_used({name: "7"}, "mms", ())
    assert sentence.startswith(f"{name} is not used here")
    assert told in sentence


@pytest.mark.parametrize("program", ["", "inference", "inference.py", "mine", "mine.py", "package.mine"])
@pytest.mark.parametrize("front", ["mms", "http"])
def test_programs_that_are_there(tmp_path: Path, program: str, front: str) -> None:
    (tmp_path / "mine.py").touch()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "mine.py").touch()
    env = {"SAGEMAKER_PROGRAM": program, "PYTHONPATH": f":/nowhere:{tmp_path}"}
    assert has_program(env)
    said = what_is_not_used(env, front, ())
    is_ours = program in ("", "inference", "inference.py")
    assert len(said) == (0 if front == "mms" or is_ours else 1)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    env = {"SAGEMAKER_PROGRAM": "my_inference.py", "PYTHONPATH": str(tmp_path)}
    assert not has_program(env)
    (sentence,) = what_is_not_used(env, "mms", ())
    assert sentence.startswith("SAGEMAKER_PROGRAM=my_inference.py is not used: there is no such module")


def test_a_script_in_the_model(tmp_path: Path) -> None:
    nested = tmp_path / "gptj"
    for folder in (tmp_path, nested):
        (folder / "code").mkdir(parents=True)
    (nested / "code" / "inference.py").touch()
    (sentence,) = what_is_not_used({}, "mms", (tmp_path, nested))
    assert sentence.startswith(f"{nested / 'code' / 'inference.py'} is not run")
    assert len(what_is_not_used({}, "http", (nested, nested))) == 1


@pytest.mark.parametrize("program", ["my_inference.py", "inference.py"])
def test_the_toolkit_does_not_hear_of_a_program_that_is_not_there(tmp_path: Path, program: str) -> None:
    """It would serve with functions of its own, which fail for every request."""
    env = mms._worker_env({"SAGEMAKER_PROGRAM": program, "OTHER": "x"}, tmp_path, tmp_path)
    assert env["OTHER"] == "x"
    assert ("SAGEMAKER_PROGRAM" in env) is (program == "inference.py")
