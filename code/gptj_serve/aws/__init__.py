"""The way from an image to an endpoint: image registry, model data and endpoints. Serving imports none of it.

Each command is a module with ``main(argv) -> exit code`` and has a script of its name in ``scripts/``.
"""
