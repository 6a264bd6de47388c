"""What is measured: servers by URL, endpoints, servers that are started here."""
