"""What is sent on one connection: heads, trailers, pipelines, encodings."""

import gzip
import json
import socket
import time
import zlib

from attacks.attack import BOTH, Attack, attack
from attacks.target import Target, flood, received, reply

ATTACKS: list[Attack] = []
MAX_MB = 32.0
"""What one connection may make the service hold for a moment."""
PING = b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"
ASK = json.dumps({"inputs": "The king", "parameters": {"max_new_tokens": 1}}).encode()
CHUNKED = b"%s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(body: bytes, *headers: str) -> bytes:
    """A request for text as it goes over the wire."""
    head = ["POST /invocations HTTP/1.1", "Host: a", "Content-Type: application/json", *headers]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


@attack(ATTACKS, is_cheap=False)
def endless_trailers(target: Target) -> None:
    """Trailers without end, to a path that reads no body."""
    with target.holding(MAX_MB), target.connected(CHUNKED % b"GET /ping" + b"0\r\n") as sock:
        seconds = flood(sock, b"X-n: a\r\n" * 8000, 8)
    assert seconds < 7, "they were taken for all the time"


@attack(ATTACKS)
def trailers_that_override(target: Target) -> None:
    """A trailer is no header: what the head says stays."""
    body = b"%x\r\n%s\r\n0\r\nContent-Type: image/png\r\nX-Request-Id: theirs\r\n\r\n" % (len(ASK), ASK)
    head = CHUNKED.replace(b"\r\n\r\n", b"\r\nX-Request-Id: mine\r\n\r\n")
    with target.connected(head % b"POST /invocations" + body) as sock:
        answer = reply(sock, "POST")
    assert (answer.status, answer.headers["x-request-id"]) == (200, "mine"), answer


@attack(ATTACKS, is_cheap=False)
def slow_trailers(target: Target) -> None:
    """A trailer that comes byte by byte does not hold a connection."""
    started_s = time.monotonic()
    with target.connected(CHUNKED % b"GET /ping" + b"0\r\n") as sock:
        sock.settimeout(1)
        while time.monotonic() < started_s + 40:
            try:
                sock.send(b"X")
                while sock.recv(1000):
                    pass
                return
            except TimeoutError:
                pass
            except OSError:
                return
    raise AssertionError("it is still read")


@attack(ATTACKS, is_cheap=False)
def endless_pipeline(target: Target) -> None:
    """Requests without end on one connection, answers unread."""
    with target.holding(MAX_MB), target.connected() as sock:
        deadline_s = time.monotonic() + 8
        worst_s = 0.0
        while time.monotonic() < deadline_s:
            flood(sock, PING * 1000, 0.3)
            worst_s = max(worst_s, target.ping_s())
    print(f"    other clients' /ping: {worst_s:.3f} s at most")
    assert worst_s < 0.5


@attack(ATTACKS)
def pipelined_in_order(target: Target) -> None:
    """The answers come in the order of the requests."""
    long = json.dumps({"inputs": "The king", "parameters": {"max_new_tokens": 30, "min_new_tokens": 30}})
    with target.connected(post(long.encode()) + PING + post(ASK, "Connection: close")) as sock:
        data = received(sock)
    assert data.count(b"HTTP/1.1 200") == 3, data
    assert data.index(b'"generated_text"') < data.index(b'"status"') < data.rindex(b'"generated_text"')


@attack(ATTACKS)
def cancelled_with_a_second_request_behind(target: Target) -> None:
    """Who goes away is seen to go, whatever else was sent on the connection."""
    parameters = {"max_new_tokens": 1900, "min_new_tokens": 1900}
    long = json.dumps({"inputs": "And", "parameters": parameters, "stream": True}).encode()
    before = target.metric("gptj_requests_cancelled_total")
    with target.connected(post(long) + PING * 3) as sock:
        assert sock.recv(10)
    deadline_s = time.monotonic() + 3
    while target.metric("gptj_requests_cancelled_total") == before:
        assert time.monotonic() < deadline_s, "its sequence still runs"
        time.sleep(0.05)


@attack(ATTACKS, BOTH)
def offers_of_http2(target: Target) -> None:
    """What Java's client and ``curl --http2`` offer may be passed over; the request is answered."""
    offer = (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAA",
    )
    with target.connected(post(ASK, *offer)) as sock:
        answer = reply(sock, "POST")
        assert answer.status == 200, answer
        sock.sendall(post(ASK))
        assert reply(sock, "POST").status == 200


@attack(ATTACKS)
def lengths_that_are_none(target: Target) -> None:
    """Not a 500, and nothing of it is taken for a next request."""
    for length in (b"0" * 4400 + b"2", b"-1", b"+2", b"0x2", b"1" * 30, "²".encode()):
        head = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: " + length + b"\r\n\r\n"
        with target.connected(head + b"{}" + PING) as sock:
            data = received(sock, 15)
        status = data.split()[1]
        assert status in (b"400", b"413", b"431"), (length[:20], data)
        assert data.count(b"HTTP/1.1 200") == 0, (length[:20], data)


@attack(ATTACKS)
def paths_with_a_slash(target: Target) -> None:
    """Nothing redirects to wherever the client's Host says."""
    for path in ("/ping/", "/invocations/", "//evil.example/ping", "/ping//"):
        answer = target.ask("GET", path, headers={"Host": "evil.example"})
        assert answer.status in (404, 405), (path, answer)
        assert "location" not in answer.headers


@attack(ATTACKS, BOTH, is_cheap=False)
def tiny_chunks(target: Target) -> None:
    """A body in chunks of a byte each holds nobody else up."""
    worst_s = 0.0
    for want in (b"POST /invocations", b"GET /ping"):
        with target.holding(MAX_MB), target.connected(CHUNKED % want) as sock:
            deadline_s = time.monotonic() + 4
            while time.monotonic() < deadline_s:
                flood(sock, b"1\r\na\r\n" * 40_000, 0.5)
                worst_s = max(worst_s, target.ping_s())
    print(f"    other clients' /ping: {worst_s:.3f} s at most")
    assert worst_s < 0.5


@attack(ATTACKS)
def half_closed(target: Target) -> None:
    """Who has said all and closes that half gets the answer, whole or as a stream."""
    parameters = {"max_new_tokens": 40, "min_new_tokens": 40}
    for stream in (False, True):
        body = json.dumps({"inputs": "And", "parameters": parameters, "stream": stream}).encode()
        with target.connected(post(body)) as sock:
            sock.shutdown(socket.SHUT_WR)
            data = received(sock, 20)
        data = data.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")  # to see whether anybody is there
        assert data.startswith(b"HTTP/1.1 200"), data
        assert b'"generated_text"' in data
        assert not stream or data.endswith(b"0\r\n\r\n")


@attack(ATTACKS)
def old_http(target: Target) -> None:
    """An HTTP/1.0 client knows no chunks: the end of a stream is the end of the connection."""
    body = json.dumps({"inputs": "And", "parameters": {"max_new_tokens": 3}, "stream": True}).encode()
    with target.connected(post(body).replace(b"HTTP/1.1", b"HTTP/1.0", 1)) as sock:
        head, _, content = received(sock, 15).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert content.startswith(b"data:"), content
    assert content.endswith(b"\n\n")


@attack(ATTACKS, BOTH)
def bodies_that_inflate(target: Target) -> None:
    """A compressed body may not be larger than a plain one."""
    encode = {"gzip": gzip.compress, "deflate": zlib.compress}
    for name, compress in encode.items():
        content = {"Content-Type": "application/json", "Content-Encoding": name}
        bomb = compress(b" " * 60_000_000)
        with target.holding(MAX_MB):
            assert target.ask("POST", "/invocations", bomb, content).status == 413
        assert target.ask("POST", "/invocations", compress(ASK), content).status == 200
        for broken in (ASK, compress(ASK)[:-9], compress(ASK) + b"x"):
            answer = target.ask("POST", "/invocations", broken, content)
            assert answer.status == 400, (name, answer)
    answer = target.ask("POST", "/invocations", ASK, {"Content-Encoding": "br"})
    assert answer.status == 415, answer
    assert "'br'" in answer.json["error"]
