"""In the path of a service, this makes its engine one without a model."""

import engine_without_model  # noqa: F401
