"""Whether a port can be listened on, asked before anything is loaded."""

import socket

from gptj_serve.errors import StartupError


def check_port_is_free(host: str, port: int) -> None:
    """Bind to the port for a moment.

    Raises:
        StartupError: It cannot be had; names the address and the setting that moves it.
    """
    with socket.socket() as probe:
        # as the server does: connections of an earlier server that still linger are no obstacle
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartupError(
                f"cannot listen on {host}:{port} ({error.strerror}); GPTJ_PORT chooses another port"
            ) from None
