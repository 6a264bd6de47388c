"""The demo model: a small GPT-J trained on public-domain text, shipped with the package."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
"""Directory of the demo model, in the layout that ``GPTJ_MODEL_DIR`` expects."""
