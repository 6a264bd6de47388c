"""The HTTP front, an ASGI application that streams tokens, beside the engine process."""
