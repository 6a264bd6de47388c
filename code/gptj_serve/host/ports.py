"""Checks that a port can be listened on, before anything is loaded."""

import socket

from gptj_serve.errors import StartupError


def check_port_is_free(host: str, port: int) -> None:
    """Bind to a port for a moment.

    Raises:
        StartupError: The port cannot be bound; the message names the address and the setting to change.
    """
    with socket.socket() as probe:
        # as for the server, lingering connections of an earlier server are no obstacle
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartupError(
                f"cannot listen on {host}:{port} ({error.strerror}); GPTJ_PORT chooses another port"
            ) from None
