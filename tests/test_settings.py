"""Settings: what is read, from where, and what a wrong value is told."""

import re
from dataclasses import replace

import pytest

from gptj_serve.errors import StartupError
from gptj_serve.launcher import EXIT_NOT_STARTED
from gptj_serve.settings import KEYS, Settings
from support.server import ROOT


def test_defaults() -> None:
    settings = Settings.from_env({})
    assert str(settings.model_dir) == "/opt/ml/model"
    assert (settings.engine, settings.front, settings.port) == ("auto", "mms", 8080)
    assert settings.max_batch_size is None
    assert settings.worker_timeout_s > settings.request_timeout_s


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"GPTJ_ENGIN": "hf"}, "GPTJ_ENGIN: no such setting; did you mean GPTJ_ENGINE?"),
        ({"GPTJ_MODEL": "m"}, "GPTJ_MODEL: no such setting; did you mean GPTJ_MODEL_DIR?"),
        ({"GPTJ_API_KEY": "k"}, "GPTJ_API_KEY: no such setting; there are GPTJ_MODEL_DIR, GPTJ_ENGINE, "),
        ({"GPTJ_ENGINE": "vllm"}, "GPTJ_ENGINE='vllm': must be one of auto, fused, deepspeed, hf"),
        ({"GPTJ_HOST": "::1"}, "GPTJ_HOST='::1': must be an IPv4 address"),
        ({"GPTJ_PORT": "0"}, "GPTJ_PORT='0': must be a whole number from 1 to 32766"),
        ({"GPTJ_PORT": "8_080"}, "GPTJ_PORT='8_080': must be a whole number from 1 to 32766"),
        ({"SAGEMAKER_BIND_TO_PORT": "x"}, "SAGEMAKER_BIND_TO_PORT='x': must be a whole number"),
        ({"GPTJ_MAX_BATCH_SIZE": "0"}, "must be a whole number from 1 to 256, or auto"),
        ({"GPTJ_REQUEST_TIMEOUT_S": "nan"}, "must be a number from 0.1 to 3600"),
        ({"TENSOR_PARALLEL_DEGREE": "2"}, "TENSOR_PARALLEL_DEGREE='2': must be 1"),
        (
            {"GPTJ_REQUEST_TIMEOUT_S": "30", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "30"},
            "GPTJ_REQUEST_TIMEOUT_S=30 is not below SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS=30",
        ),
    ],
)
def test_a_bad_setting_is_told_with_key_value_and_range(env: dict[str, str], message: str) -> None:
    with pytest.raises(StartupError) as error:
        Settings.from_env(env)
    assert message in str(error.value)


def test_the_port_is_ours_first_then_sagemakers() -> None:
    both = {"GPTJ_PORT": "9000", "SAGEMAKER_BIND_TO_PORT": "9001"}
    assert Settings.from_env(both).port == 9000
    assert Settings.from_env({"SAGEMAKER_BIND_TO_PORT": "9001"}).port == 9001


def test_only_the_model_servers_front_takes_no_high_port() -> None:
    for name in ("GPTJ_PORT", "SAGEMAKER_BIND_TO_PORT"):
        assert Settings.from_env({"GPTJ_FRONT": "http", name: "65535"}).port == 65535
        assert Settings.from_env({"GPTJ_FRONT": "mms", name: "32766"}).port == 32766
        with pytest.raises(StartupError, match=f"{name}='32767': .* from 1 to 32766 .*http up to 65535"):
            Settings.from_env({name: "32767"})
        with pytest.raises(StartupError, match=f"{name}='65536': must be a whole number from 1 to 65535"):
            Settings.from_env({"GPTJ_FRONT": "http", name: "65536"})


def test_the_page_is_off_inside_sagemaker() -> None:
    inside = {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/1"}
    assert Settings.from_env({}).page
    assert not Settings.from_env(inside).page
    assert Settings.from_env({**inside, "GPTJ_PAGE": "on"}).page
    assert not Settings.from_env({"GPTJ_PAGE": "off"}).page


def test_the_models_name() -> None:
    assert Settings.from_env({}).model_name is None
    assert Settings.from_env({"GPTJ_MODEL_NAME": "me/my-gpt.j:v1"}).model_name == "me/my-gpt.j:v1"
    for wrong in ("a b", "a" * 201, "é"):
        with pytest.raises(StartupError, match=r"GPTJ_MODEL_NAME=.*must be 1 to 200 letters"):
            Settings.from_env({"GPTJ_MODEL_NAME": wrong})


def test_idle_connections_outlive_those_of_load_balancers() -> None:
    assert Settings.from_env({}).idle_timeout_s > 60
    assert Settings.from_env({"GPTJ_IDLE_TIMEOUT_S": "620"}).idle_timeout_s == 620
    with pytest.raises(StartupError, match="GPTJ_IDLE_TIMEOUT_S='0': must be a whole number from 1 to 3600"):
        Settings.from_env({"GPTJ_IDLE_TIMEOUT_S": "0"})


def test_web_origins() -> None:
    assert Settings.from_env({}).cors_origins == ()
    origins = "https://a.example, http://localhost:3000"
    assert Settings.from_env({"GPTJ_CORS_ORIGINS": origins}).cors_origins == (
        "https://a.example",
        "http://localhost:3000",
    )
    for wrong in ("example.com", "https://a.example/path", "https://a.example,"):
        with pytest.raises(StartupError, match="GPTJ_CORS_ORIGINS"):
            Settings.from_env({"GPTJ_CORS_ORIGINS": wrong})


def test_an_empty_value_and_auto_mean_the_default() -> None:
    settings = Settings.from_env({"GPTJ_PORT": " ", "GPTJ_MAX_BATCH_SIZE": "AUTO"})
    assert (settings.port, settings.max_batch_size) == (8080, None)


def test_a_shorter_worker_timeout_shortens_the_deadline() -> None:
    settings = Settings.from_env({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "20"})
    assert (settings.worker_timeout_s, settings.request_timeout_s) == (20, 18.0)


def test_every_key_is_read() -> None:
    # an unreadable value for each: a key that nothing reads would pass
    for key in set(KEYS) - {"GPTJ_MODEL_DIR", "GPTJ_HOST"}:
        with pytest.raises(StartupError, match=key):
            Settings.from_env({key: "?"})
    assert Settings.from_env({"GPTJ_HOST": "10.0.0.1"}).host == "10.0.0.1"


def test_the_unit_of_the_docs_has_settings_that_exist_and_time_to_drain() -> None:
    (unit,) = re.findall(r"```ini\n(.*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    lines = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
    settings = Settings.from_env(dict(pair.split("=", 1) for pair in lines["Environment"].split()))
    assert settings.front == "http"
    # it ends within SageMaker's 30 s
    assert 30 <= int(lines["TimeoutStopSec"]) < 60
    assert settings.drain_timeout_s < 30
    assert lines["RestartPreventExitStatus"] == str(EXIT_NOT_STARTED)


PAGE = (ROOT / "docs" / "settings.md").read_text()
ROWS = {
    name: (default, allowed)
    for name, default, allowed in re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \| (.*) \|$", PAGE, re.M)
}
RANGES = [
    (name, low, high)
    for name, (_, allowed) in ROWS.items()
    for low, high in re.findall(r"^([\d.]+)\u2013(\d+)(?:$|[,;])", allowed)
    if name != "GPTJ_PORT"
]


def test_the_page_for_operators_has_every_setting() -> None:
    others = {name for name in ROWS if not name.startswith("GPTJ_")}
    assert {name for name in ROWS if name.startswith("GPTJ_")} == set(KEYS)
    assert others == {
        "SAGEMAKER_BIND_TO_PORT",
        "SAGEMAKER_MODEL_SERVER_WORKERS",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB",
        "TENSOR_PARALLEL_DEGREE",
    }


@pytest.mark.parametrize(("name", "low", "high"), RANGES, ids=[name for name, *_ in RANGES])
def test_its_ranges_are_those_of_the_code(name: str, low: str, high: str) -> None:
    for value in (low, high):
        Settings.from_env({name: value})
    step = 1 if "." not in low else 0.01
    for value in (float(low) - step, float(high) + 1):
        with pytest.raises(StartupError, match=name):
            Settings.from_env({name: f"{value:g}" if value % 1 else str(int(value))})


def test_its_defaults_are_those_of_the_code() -> None:
    plain = Settings.from_env({})
    told = {name: default.split("`")[1] if "`" in default else default for name, (default, _) in ROWS.items()}
    for name, default in told.items():
        if re.fullmatch(r"[\d.]+|[a-z]+|/[\w/]+", default) and default not in ("none", "the", "request"):
            assert replace(Settings.from_env({name: default}), model_as_given=None) == plain, name
    assert sum(bool(re.fullmatch(r"[\d.]+", default)) for default in told.values()) >= 9
