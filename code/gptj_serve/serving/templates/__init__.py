"""Chat templates: read from the model's files, rendered in a process of their own, asked over a socket.

A template comes with a model and may loop, or need any memory, on messages that a client chose. What renders
it is therefore limited by the kernel, and ends alone.
"""
