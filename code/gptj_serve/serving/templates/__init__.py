"""Chat templates: they are read from the model's files, and rendered in a process behind a socket.

A template comes with a model and may loop, or need any amount of memory, on messages that a client chose. The
kernel therefore limits the process that renders it, and ends only that process.
"""
