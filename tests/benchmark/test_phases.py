"""What is read out of the log of a start."""

from gptj_serve.benchmark.facts.phases import parts, phases


def test_where_kernels_came_from() -> None:
    log = [
        '{"time": "2026-01-01T00:00:00.000+00:00", "event": "starting"}\n',
        "not JSON\n",
        '{"time": "2026-01-01T00:00:02.500+00:00", "event": "kernels_loaded", "origin": "prebuilt", '
        '"seconds": 0.3}\n',
    ]
    parts = {"imports": 0, "kernels": 0.3, "load": 0, "warm_up": 0}
    found = phases(log)
    assert found == {
        "starting": 0.0,
        "kernels_loaded": 2.5,
        "kernels": "prebuilt",
        "parts": parts,
        "loading": {},
    }


def test_what_took_how_long() -> None:
    records = [
        {"time": "2026-01-01T00:00:00.000+00:00", "event": "starting"},
        {"time": "2026-01-01T00:00:02.000+00:00", "event": "imported", "seconds": 1.5},
        {"time": "2026-01-01T00:00:03.000+00:00", "event": "imported", "seconds": 1.0},
        {"time": "2026-01-01T00:00:04.000+00:00", "event": "model_loaded", "seconds": 0.75},
        {"time": "2026-01-01T00:00:05.000+00:00", "event": "warmed_up", "seconds": 0.5},
        {"time": "2026-01-01T00:00:05.500+00:00", "event": "engine_ready", "seconds": 5.25},
        {"time": "2026-01-01T00:00:05.625+00:00", "event": "ready", "seconds": 5.5},
    ]
    assert parts(records) == {
        "imports": 2.5,
        "kernels": 0,
        "load": 0.75,
        "warm_up": 0.5,
        "front": 0.125,
        "other": 1.625,
    }
