"""From an image to an endpoint: image registry, model data and endpoints. No part of serving.

Each command is a module with ``main(argv) -> exit code``, and a script of its name in ``scripts/``.
"""
