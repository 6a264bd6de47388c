"""Other ways to run GPT-J, measured beside ours where they are installed."""

PEERS = ("transformers-compiled", "ctranslate2", "vllm")
