"""The policies that commands need, and the role that an endpoint runs with."""
