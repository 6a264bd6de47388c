"""The page to try the service, in a real browser, against a stand-in that speaks its stream."""

import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from http.server import BaseHTTPRequestHandler
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from support.loopback_server import serving
from support.server import WAIT_TIMEOUT_S

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not on PATH")

PAGE = resources.files("gptj_serve.serving.http").joinpath("page.html").read_bytes()
INFO = {"model_name": "gpt-j-6b", "engine": "fused", "max_total_tokens": 2048}
WORDS = [" the", " Word", ",", " and", " <b>the</b>", " W\u00f6rter", "."]

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Serves the page and what the test has set as answer."""

    answer: ClassVar[Answer]
    below: ClassVar[str]
    """The path at which the service is, with a slash at its end."""
    bodies: ClassVar[list[Any]] = []
    client_gone: ClassVar[threading.Event]
    go_on: ClassVar[threading.Event]
    """A stream that `pauses` waits for it after its first word."""

    def do_GET(self) -> None:
        if self.path == self.below + "info":
            self._start(200, "application/json", json.dumps(INFO).encode())
        else:
            self._start(200, "text/html; charset=utf-8", PAGE)

    def do_POST(self) -> None:
        assert self.path == self.below + "invocations"
        assert self.headers["Content-Type"] == "application/json"
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        with suppress(ConnectionError):
            type(self).answer(self)

    def refuse(self, status: int, body: bytes, **headers: str) -> None:
        self._start(status, "application/json", body, **headers)

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event, cut where no client may expect it."""
        data = b"data:" + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"
        for part in (data[:-40], data[-40:]):
            try:
                self.wfile.write(part)
                self.wfile.flush()
            except ConnectionError:
                self.client_gone.set()
                raise

    def stream(self, words: list[str], pause_s: float = 0.0, pauses: bool = False) -> None:
        self._start(200, "text/event-stream")
        for index, word in enumerate(words):
            time.sleep(pause_s)
            if pauses and index == 1:
                self.go_on.wait()
            is_last = index + 1 == len(words)
            details = {"finish_reason": "length", "generated_tokens": len(words), "seed": 1}
            self.tell(
                {
                    "index": index + 1,
                    "token": {"id": 1, "text": word, "logprob": -1.0, "special": False},
                    "generated_text": "".join(words) if is_last else None,
                    "details": details if is_last else None,
                }
            )

    def _start(self, status: int, content_type: str, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Connection": "close", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with serving(Handler) as server:
        yield server.url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("chromium")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--window-size=1200,1000",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, origin: str, request: pytest.FixtureRequest) -> Iterator["Page"]:
    Handler.bodies.clear()
    Handler.client_gone, Handler.go_on = threading.Event(), threading.Event()
    Handler.answer = lambda handler: handler.stream(WORDS)
    Handler.below = getattr(request, "param", "/")
    browser.get(origin + Handler.below)
    yield Page(browser)
    Handler.go_on.set()


class Page:
    """What a user sees and does."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def __getitem__(self, name: str) -> Any:
        return self.browser.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return str(self[name].get_property("textContent"))

    def fill(self, **fields: str) -> None:
        for name, value in fields.items():
            self[name].clear()
            self[name].send_keys(value)

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        end_s = time.monotonic() + WAIT_TIMEOUT_S
        while not (found := condition()):
            assert time.monotonic() < end_s, f"{what}: {self.text('figures')!r} {self.text('error')!r}"
            time.sleep(0.02)
        return found

    def generate(self) -> None:
        self["generate"].click()
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        self.wait(self["generate"].is_enabled, "still busy")

    def only_body(self) -> Any:
        (body,) = Handler.bodies
        return body


def color(element: Any) -> str:
    return str(element.value_of_css_property("color"))


def test_text_streams_in_after_the_prompt(page: Page) -> None:
    Handler.answer = lambda handler: handler.stream(WORDS, pauses=True)
    page.fill(prompt="In the beginning was")
    page["generate"].click()
    seen = page.wait(lambda: page.text("made"), "no text")
    assert seen == WORDS[0]
    assert page["halt"].is_enabled()
    assert not page["generate"].is_enabled()
    assert re.match(r"first token after \d+ ms", page.text("figures"))
    Handler.go_on.set()
    page.wait_until_idle()
    assert page.text("given") == "In the beginning was"
    assert page.text("made") == "".join(WORDS)
    assert color(page["made"]) != color(page["given"])
    assert page["made"].find_elements(By.XPATH, "./*") == []  # the model's tags are text
    assert page.text("error") == ""


def test_figures(page: Page) -> None:
    Handler.answer = lambda handler: handler.stream(WORDS, pause_s=0.1, pauses=True)
    asked_s = time.monotonic()
    page["generate"].click()
    page.wait(lambda: page.text("made"), "no text")
    seen_s = time.monotonic()
    time.sleep(0.5)
    Handler.go_on.set()
    page.wait_until_idle()
    done_s = time.monotonic()
    figures = page.text("figures")
    found = re.fullmatch(
        r"first token after (\d+) ms, ([\d.]+) tokens/s, 7 tokens, ended: all tokens used", figures
    )
    assert found, figures
    assert 100 <= int(found[1]) <= 1000 * (seen_s - asked_s)
    # six tokens came after the first, and the last one half a second or more after that was seen
    assert 6 / (done_s - asked_s) - 0.1 <= float(found[2]) <= 6 / 0.5 + 0.1
    assert page.text("news") == figures


def test_what_is_sent(page: Page) -> None:
    page.fill(
        prompt="a\nb",
        max_new_tokens="7",
        temperature="0.5",
        top_k="3",
        top_p="0.9",
        repetition_penalty="1.2",
        seed="9007199254740991",
        stop="end\n\\n\\n\nC:\\\\new",
    )
    page.generate()
    assert page.only_body() == {
        "inputs": "a\nb",
        "parameters": {
            "max_new_tokens": 7,
            "do_sample": True,
            "temperature": 0.5,
            "top_k": 3,
            "top_p": 0.9,
            "repetition_penalty": 1.2,
            "stop": ["end", "\n\n", "C:\\new"],
            "seed": 9007199254740991,
            "details": True,
        },
        "stream": True,
    }


def test_what_answers_is_named(page: Page) -> None:
    said = "Model gpt-j-6b, engine fused, context 2048 tokens"
    page.wait(lambda: page.text("about") == said, "not named")


@pytest.mark.parametrize("page", ["/proxy/gptj/"], indirect=True)
def test_below_a_path_of_a_proxy(page: Page, origin: str) -> None:
    page.generate()
    assert page.text("made") == "".join(WORDS)
    assert f"'{origin}/proxy/gptj/invocations'" in page.text("curl")
    page.wait(lambda: "gpt-j-6b" in page.text("about"), "not named")


@pytest.mark.parametrize("has_clipboard", [True, False])
@pytest.mark.parametrize("name", ["text", "curl", "boto3"])
def test_copying(page: Page, name: str, has_clipboard: bool) -> None:
    page.browser.execute_script("window.copied = null")
    if has_clipboard:
        page.browser.execute_script(
            "Object.defineProperty(navigator, 'clipboard', {configurable: true, value: "
            "{writeText: async text => { window.copied = text; }}})"
        )
    else:  # a page that comes over plain HTTP from another machine
        page.browser.execute_script(
            "Object.defineProperty(navigator, 'clipboard', {configurable: true, value: undefined});"
            "document.addEventListener('copy', () => { window.copied = getSelection().toString(); })"
        )
    page.generate()
    button = page.browser.find_element(By.CSS_SELECTOR, f".copy[data-of={name}]")
    button.click()
    page.wait(lambda: button.text == "Copied", "not copied")
    assert page.browser.execute_script("return window.copied").rstrip("\n") == page.text(name).rstrip("\n")
    page.wait(lambda: button.text == "Copy", "cannot be copied again")


def test_greedy(page: Page) -> None:
    page.fill(temperature="0", max_new_tokens="")
    page.generate()
    parameters = page.only_body()["parameters"]
    assert parameters == {"do_sample": False, "repetition_penalty": 1, "details": True}


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop(page: Page, how: str) -> None:
    Handler.answer = lambda handler: handler.stream([" word"] * 400, pause_s=0.05)
    page["generate"].click()
    page.wait(lambda: page.text("made").count(" word") > 2, "no text")
    if how == "button":
        page["halt"].click()
    else:
        page["prompt"].send_keys(Keys.ESCAPE)
    page.wait_until_idle()
    made = page.text("made")
    assert 2 < made.count(" word") < 400
    assert page.text("figures").endswith("ended: stopped")
    assert page.text("error") == ""
    assert Handler.client_gone.wait(WAIT_TIMEOUT_S)
    assert page.text("made") == made
    assert not page["halt"].is_enabled()


def test_keys(page: Page) -> None:
    page["prompt"].send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.text("figures").endswith("used"), "not generated")
    assert page.text("given") == "In the beginning"
    assert len(Handler.bodies) == 1


def test_focus_goes_with_the_buttons(page: Page) -> None:
    Handler.answer = lambda handler: handler.stream([" word"] * 400, pause_s=0.05)
    page["generate"].send_keys(Keys.ENTER)
    page.wait(lambda: page.text("made"), "no text")
    assert page.browser.switch_to.active_element == page["halt"]
    page.browser.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait_until_idle()
    assert page.browser.switch_to.active_element == page["generate"]


@pytest.mark.parametrize(
    ("status", "body", "headers", "shown"),
    [
        (
            400,
            {"error": "inputs: is <b>empty</b>", "error_type": "validation"},
            {},
            "inputs: is <b>empty</b>",
        ),
        (429, {"error": "the queue is full"}, {"Retry_After": "3"}, "the queue is full (try again in 3 s)"),
        (400, {"error": {"message": "as OpenAI has it"}}, {}, "as OpenAI has it"),
        (502, None, {}, "The server answered with status 502 and did not say why."),
    ],
)
def test_an_error_body(page: Page, status: int, body: Any, headers: dict[str, str], shown: str) -> None:
    data = b"<html>" if body is None else json.dumps(body).encode()
    Handler.answer = lambda handler: handler.refuse(status, data, **headers)
    page.generate()
    assert page.text("error") == shown
    assert page["error"].is_displayed()
    assert page.text("made") == page.text("figures") == ""
    Handler.answer = lambda handler: handler.stream(WORDS)
    page.generate()
    assert page.text("error") == ""


def test_an_error_in_the_stream(page: Page) -> None:
    def fail(handler: Handler) -> None:
        handler._start(200, "text/event-stream")
        handler.tell({"index": 1, "token": {"text": " some", "special": False}, "details": None})
        handler.tell({"error": "no answer within 60 s", "error_type": "timeout"})

    Handler.answer = fail
    page.generate()
    assert page.text("error") == "no answer within 60 s"
    assert page.text("made") == " some"


def test_a_stream_that_breaks_off(page: Page) -> None:
    def break_off(handler: Handler) -> None:
        handler._start(200, "text/event-stream")
        handler.tell({"index": 1, "token": {"text": " some", "special": False}, "details": None})

    Handler.answer = break_off
    page.generate()
    assert page.text("error") == "The connection ended before the answer was complete."


def test_a_field_that_is_wrong_is_not_sent(page: Page) -> None:
    page.fill(top_p="1.5")
    page.generate()
    assert page.text("error").startswith("Top p: ")
    assert Handler.bodies == []
    assert page.browser.switch_to.active_element == page["top_p"]


def test_curl_as_sh_reads_it(page: Page, origin: str) -> None:
    page.fill(prompt='it\'s "$HOME" `x` \\ !\n\u00e9', stop="'")
    line = page.text("curl")
    script = "curl() { printf '%s\\0' \"$@\"; }\n" + line
    done = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    *arguments, data = done.stdout.decode().split("\0")[:-1]
    assert arguments == ["-N", f"{origin}/invocations", "-H", "Content-Type: application/json", "-d"]
    page.generate()
    assert json.loads(data) == page.only_body()


def test_boto3_as_python_runs_it(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    page.fill(prompt='it\'s "$HOME" \\ \\n\n\u00e9', stop="'\n\"")
    asked: dict[str, Any] = {}
    told = b"".join(b'data:{"token": {"text": "%s"}}\n\n' % word for word in (b"one ", b"two"))

    def invoke(**request: Any) -> dict[str, Any]:
        asked.update(request)
        return {"Body": [{"PayloadPart": {"Bytes": part}} for part in (told[:9], told[9:40], told[40:])]}

    client = types.SimpleNamespace(invoke_endpoint_with_response_stream=invoke)
    fake = types.SimpleNamespace(client={"sagemaker-runtime": client}.__getitem__)
    monkeypatch.setitem(sys.modules, "boto3", fake)
    with redirect_stdout(io.StringIO()) as printed:
        exec(page.text("boto3"), {})
    assert printed.getvalue() == "one two"
    assert asked["ContentType"] == "application/json"
    page.generate()
    assert json.loads(asked["Body"]) == page.only_body()


def test_every_field_has_a_label(page: Page) -> None:
    for field in page.browser.find_elements(By.CSS_SELECTOR, "input, textarea"):
        assert field.accessible_name


def test_nothing_comes_from_elsewhere(page: Page, origin: str) -> None:
    page.generate()
    names = page.browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    asked = {name for name in names if not name.startswith("data:")}
    assert asked == {f"{origin}/info", f"{origin}/invocations"}
    assert "innerHTML" not in PAGE.decode()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 360)])
def test_how_it_looks(page: Page, scheme: str, width: int, tmp_path: Path) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        page.generate()
        script = "return document.documentElement.scrollWidth"
        assert page.browser.execute_script(script) <= width
        lights = [contrast(page, name) for name in ("given", "made", "figures", "curl", "generate", "halt")]
        assert min(lights) >= 4.5
        page.browser.execute_script("window.scrollTo(0, 0)")
        page.browser.save_screenshot(str(tmp_path / f"{scheme}-{width}.png"))
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(page: Page, name: str) -> float:
    """WCAG's contrast ratio of an element's text to what is behind it."""
    ink = rgb(color(page[name]))
    behind = page.browser.execute_script(
        """let at = arguments[0], found;
        do { found = getComputedStyle(at).backgroundColor; at = at.parentElement; }
        while (at && found === "rgba(0, 0, 0, 0)");
        return found;""",
        page[name],
    )
    lighter, darker = sorted((luminance(ink), luminance(rgb(behind))), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def rgb(css: str) -> list[float]:
    return [int(number) / 255 for number in re.findall(r"\d+", css)[:3]]


def luminance(channels: list[float]) -> float:
    red, green, blue = ((c / 12.92) if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
