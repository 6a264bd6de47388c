"""What can be chosen when the demo model is trained."""

from dataclasses import dataclass

from transformers import GPTJConfig

from gptj_serve.demo.tokenizer import END_OF_TEXT_ID


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What can be chosen on the command line.

    Attributes:
        device: Where to train: "cuda" or "cpu".
        seed: Fixes initial weights, dropout and the order of the text (on one machine and version).
        steps: Optimizer steps, >= 1.
        max_seconds: The steps end here at the latest, with the learning rate brought down in time;
            saving and measuring come on top.
        batch_size: Rows of ``n_positions`` tokens a step.
        learning_rate: The peak after the warm-up.
        warmup_steps: Steps of linear warm-up.
        weight_decay: AdamW's weight decay, on matrices.
        dropout: The dropout of attention weights, residual branches and embeddings in training.
        document_start_share: Share of the rows that start where a document does, as prompts do.
        eval_every: Steps between two looks at the dev split.
        vocab_size: Tokens the tokenizer may have, > 256.
        n_positions: Context length.
        n_embd: Width; the MLP is four times as wide.
        n_layer: Blocks.
        n_head: Attention heads.
        rotary_dim: Dimensions of each head that are rotated.
    """

    device: str = "cuda"
    seed: int = 1
    steps: int = 1600
    max_seconds: float = 180.0
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    dropout: float = 0.2
    document_start_share: float = 0.25
    eval_every: int = 100
    vocab_size: int = 2048
    n_positions: int = 2048
    n_embd: int = 256
    n_layer: int = 5
    n_head: int = 4
    rotary_dim: int = 32

    def model_config(self, vocab_size: int, *, dropout: float) -> GPTJConfig:
        """The architecture, for the vocabulary that the tokenizer got."""
        return GPTJConfig(
            vocab_size=vocab_size,
            n_positions=self.n_positions,
            n_embd=self.n_embd,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_inner=4 * self.n_embd,
            rotary_dim=self.rotary_dim,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=END_OF_TEXT_ID,
            eos_token_id=END_OF_TEXT_ID,
        )
