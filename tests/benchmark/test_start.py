"""What is read out of the log of a start."""

from gptj_serve.benchmark.start import phases
from harness import Server


def test_phases_come_in_order(server: Server) -> None:
    found = phases(server.lines)
    names = ["starting", "engine_chosen", "model_loaded", "engine_ready", "ready"]
    assert [name for name in found if name in names] == names
    seconds = [found[name] for name in names]
    assert seconds == sorted(seconds)
    assert 0 <= seconds[0] < seconds[-1] <= server.events("ready")[0]["seconds"] + 1


def test_where_kernels_came_from() -> None:
    log = [
        '{"time": "2026-01-01T00:00:00.000+00:00", "event": "starting"}\n',
        "not JSON\n",
        '{"time": "2026-01-01T00:00:02.500+00:00", "event": "kernels_loaded", "origin": "prebuilt"}\n',
    ]
    assert phases(log) == {"starting": 0.0, "kernels_loaded": 2.5, "kernels": "prebuilt"}
