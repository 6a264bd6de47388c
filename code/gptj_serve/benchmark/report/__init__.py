"""Tables and figures from files of results."""
