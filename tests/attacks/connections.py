"""Many connections, and connections that say nothing."""

import contextlib
import json
import resource
import socket
import time
from typing import Any

from attacks.attack import Attack, attack
from attacks.protocol import PING, post
from attacks.target import Target, received, reply

ATTACKS: list[Attack] = []
NUM_SILENT = 1100
"""More than the service has places."""


def more_files() -> None:
    """Let this process have as many connections as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@attack(ATTACKS, is_cheap=False)
def silent_connections(target: Target) -> None:
    """Places that are held by who says nothing any more are there for who comes."""
    more_files()
    beginning = PING.replace(b"\r\n\r\n", b"\r\nContent-Length: 1000000\r\n\r\n")
    with contextlib.ExitStack() as stack:
        silent = []
        for _ in range(NUM_SILENT):
            sock = stack.enter_context(target.connected(beginning))
            with contextlib.suppress(OSError):
                sock.recv(1000)
                sock.send(b"x")
            silent.append(sock)
        worst_s = max(target.ping_s() for _ in range(20))
        assert worst_s < 2, worst_s
        assert target.generate("The king", max_new_tokens=1).status == 200
        time.sleep(25)
        for sock in silent:
            received(sock, 1)


@attack(ATTACKS, is_cheap=False)
def bodies_nobody_reads(target: Target) -> None:
    """The rest of a body that no answer needs is not waited for without end."""
    wants = (b"GET /ping", b"POST /nowhere", b"DELETE /invocations", b"POST /invocations")
    started_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        head = b"%s HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{"
        for sock in [stack.enter_context(target.connected(head % want)) for want in wants]:
            received(sock, max(0.1, started_s + 30 - time.monotonic()))


@attack(ATTACKS, is_cheap=False)
def hoarded_bodies(target: Target) -> None:
    """Bodies of six megabytes that never end, on 300 connections; a small request is answered beside them."""
    more_files()
    head = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 6200000\r\n\r\n"
    with target.holding(256), contextlib.ExitStack() as stack:
        socks: list[socket.socket] = []
        for _ in range(300):
            sock = stack.enter_context(target.connected(head))
            sock.settimeout(0.1)
            socks.append(sock)
            with contextlib.suppress(OSError):
                for _ in range(60):
                    sock.sendall(b" " * 100_000)
        started_s = time.monotonic()
        assert target.generate("The king", max_new_tokens=1).status == 200
        assert time.monotonic() < started_s + 5


@attack(ATTACKS, is_cheap=False)
def idle_as_load_balancers(target: Target) -> None:
    """A connection that was idle for a minute is as good as new."""
    with target.connected(PING) as sock:
        assert reply(sock).status == 200
        time.sleep(62)
        sock.sendall(PING)
        assert reply(sock).status == 200


@attack(ATTACKS, is_cheap=False)
def unread_answers(target: Target) -> None:
    """A whole answer or a stream that nobody takes is given up, half a minute after it is more than waits."""
    length = {"max_new_tokens": 400, "min_new_tokens": 400}
    several = {"do_sample": True, "num_return_sequences": 4, "details": True, "top_n_tokens": 5}
    wants: list[dict[str, Any]] = [
        {"inputs": "And", "parameters": {**length, **several}},
        {"prompt": "And", "n": 2, "logprobs": 5, "max_tokens": 1200, "min_tokens": 1200, "stream": True},
    ]
    with contextlib.ExitStack() as stack:
        socks = []
        for want in wants:
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((target.host, target.port))
            sock.sendall(post(json.dumps(want).encode()))
            socks.append(sock)
        time.sleep(90)
        for sock in socks:
            data = received(sock, 5)
            assert data.startswith(b"HTTP/1.1 200"), data[:300]
            assert not data.endswith((b"0\r\n\r\n", b"}]")), "all of it could still be read"
