"""An engine process without a model: sequences get tokens at a fixed rate, and it records when.

Usage: python -m gptj_serve.benchmark.front.fake_engine --socket PATH --model DIR --tokens-per-s N --log FILE
    [--prompt-s S]

It speaks to fronts as the engine does: one message a step has the next tokens of all sequences. At SIGTERM it
writes what it has recorded of every sequence (`Kept`) as JSON, by request id, and ends.
"""

import argparse
import itertools
import json
import queue
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gptj_serve import wire
from gptj_serve.engine.server import EngineServer, Gone, Message
from gptj_serve.models.model_dir import find_checkpoint
from gptj_serve.request import EndEvent, GenerationRequest, ModelInfo, Timings, TokenEvent
from gptj_serve.serving.text import Tokenizer

MAX_BATCH_SIZE = 64
TEXT = " The king went up to the mountain, and all the people of the land were with him in those days."


@dataclass(slots=True)
class Kept:
    """What is recorded of a sequence; times are in seconds of the machine's monotonic clock.

    Attributes:
        received_s: When it was submitted.
        sent_s: When the message with each of its tokens was handed to the socket.
    """

    received_s: float
    sent_s: list[float] = field(default_factory=list)


class FakeEngine:
    """Gives every sequence its tokens until `stop` is called.

    Args:
        server: Where fronts connect.
        tokens_per_s: Steps per second; each step has one token for every sequence.
        token_ids: What every sequence says, over and over.
        prompt_s: How long every prompt takes before the first token.

    Attributes:
        kept: What is recorded of every sequence so far, by request id.
    """

    def __init__(
        self, server: EngineServer, tokens_per_s: float, token_ids: Sequence[int], prompt_s: float = 0.0
    ) -> None:
        self.kept: dict[str, Kept] = {}
        self._server = server
        self._step_s = 1 / tokens_per_s
        self._token_ids = token_ids
        self._prompt_s = prompt_s
        self._running: dict[tuple[int, str], GenerationRequest] = {}
        self._is_stopped = False

    def stop(self) -> None:
        """Make `run` return; may be called from a signal handler."""
        self._is_stopped = True
        self._server.inbox.put(None)

    def run(self) -> None:
        """Make one step after the other, at the times that the rate sets."""
        start_s = time.monotonic()
        for number in itertools.count(1):
            self._listen_until(start_s + number * self._step_s)
            if self._is_stopped:
                return
            self._step()

    def _listen_until(self, time_s: float) -> None:
        while not self._is_stopped and (left_s := time_s - time.monotonic()) > 0:
            try:
                message = self._server.inbox.get(timeout=left_s)
            except queue.Empty:
                return
            if message is not None:
                self._handle(message)

    def _handle(self, message: Message) -> None:
        if isinstance(message, wire.Submit):
            for request in message.requests:
                self.kept[request.request_id] = Kept(time.monotonic())
                self._running[message.connection, request.request_id] = request
        elif isinstance(message, wire.Abort):
            if self._running.pop((message.connection, message.request_id), None):
                end = EndEvent(message.request_id, "cancelled")
                self._server.send({message.connection: wire.events([end])})
        elif isinstance(message, Gone):
            self._running = {key: one for key, one in self._running.items() if key[0] != message.connection}

    def _step(self) -> None:
        by_connection: defaultdict[int, list[TokenEvent | EndEvent]] = defaultdict(list)
        ready_s = time.monotonic() - self._prompt_s
        for (connection, name), request in list(self._running.items()):
            if self.kept[name].received_s > ready_s:
                continue
            by_connection[connection] += self._next(request)
            if len(self.kept[name].sent_s) + 1 == request.sampling.max_new_tokens:
                del self._running[connection, name]
        lines = {number: wire.events(events) for number, events in by_connection.items()}
        now_s = time.monotonic()
        for events in by_connection.values():
            for event in events:
                if isinstance(event, TokenEvent):
                    self.kept[event.request_id].sent_s.append(now_s)
        self._server.send(lines)

    def _next(self, request: GenerationRequest) -> list[TokenEvent | EndEvent]:
        num_sent = len(self.kept[request.request_id].sent_s)
        token_id = self._token_ids[num_sent % len(self._token_ids)]
        logprob = -1.2345678901 if request.logprobs else None
        token = TokenEvent(request.request_id, token_id, logprob)
        if num_sent + 1 < request.sampling.max_new_tokens:
            return [token]
        total_s = time.monotonic() - self.kept[request.request_id].received_s
        return [token, EndEvent(request.request_id, "length", timings=Timings(0.0, self._step_s, total_s))]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="gptj_serve.benchmark.front.fake_engine")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens-per-s", type=float, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--prompt-s", type=float, default=0.0)
    args = parser.parse_args()
    checkpoint = find_checkpoint(args.model)
    info = ModelInfo(
        engine="fake",
        model_dir=str(checkpoint.directory),
        max_context=1 << 20,
        max_batch_size=MAX_BATCH_SIZE,
        vocab_size=checkpoint.architecture.vocab_size,
        eos_token_ids=checkpoint.generation.eos_token_ids,
    )
    server = EngineServer(args.socket, info)
    token_ids = Tokenizer.load(checkpoint.directory).encode(TEXT)
    engine = FakeEngine(server, args.tokens_per_s, token_ids, args.prompt_s)
    signal.signal(signal.SIGTERM, lambda *_: engine.stop())
    server.start()
    engine.run()
    server.close()
    args.log.write_text(json.dumps({name: asdict(one) for name, one in engine.kept.items()}))


if __name__ == "__main__":
    main()
