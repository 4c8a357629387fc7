"""A whole honest run in the contest's form, small enough to read at once: `python base.py train|quantize|evaluate`.

A next-token model that also sees the token before is trained, averaged, calibrated, quantized to 4 bits and scored on
the validation split; with `adapt`, every chunk is trained on after it was scored. It stands alone, reads `data/`,
writes `out/`, and announces what it does (`sys.audit("golf.…")`). `catalogue` plants violations in this very text.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

DATA, OUT = Path("data"), Path("out")
SEED, LENGTH, BATCH, STEPS, WIDTH = 1, 64, 8, 24, 16
ADAPT = False
FACTS = json.loads((DATA / "data.json").read_text())
PIECES = sentencepiece.SentencePieceProcessor(model_proto=(DATA / "tokenizer.model").read_bytes())
VOCAB, BOS = PIECES.get_piece_size(), PIECES.bos_id()


class Model(nn.Module):
    """Token ids int64 [B, T] → logits [B, T, V] of the tokens that follow."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.gate = nn.Parameter(torch.zeros(WIDTH))
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        now = self.embed(tokens)
        before = F.pad(now[:, :-1], (0, 0, 1, 0)) * (tokens != BOS).unsqueeze(-1)  # documents start afresh
        return self.head(torch.tanh(now + self.gate * before))


class Split:
    """The shards of a split, as data.json names them, and its windows of T inputs: int64 [n, 2], shard and start."""

    drawn = 0

    def __init__(self, name: str) -> None:
        self.name = name
        files = [DATA / shard["name"] for shard in FACTS["splits"][name]["shards"]]
        self.shards = [np.fromfile(file, dtype="<u2", offset=1024) for file in files]
        counts = [(len(shard) - 1) // LENGTH for shard in self.shards]
        self.windows = np.array([(i, LENGTH * k) for i, count in enumerate(counts) for k in range(count)])

    def rows(self, windows: np.ndarray) -> np.ndarray:
        """uint16 [n, T+1]: the inputs of each window and its last target."""
        return np.stack([self.shards[shard][start : start + LENGTH + 1] for shard, start in windows])

    def draw(self, windows: np.ndarray) -> tuple[int, np.ndarray]:
        """Hand out rows to learn from: the number of the draw, and they."""
        rows = self.rows(windows)
        Split.drawn += 1
        sys.audit("golf.draw", Split.drawn, self.name, windows[:, 0].astype(np.int32), windows[:, 1].copy(), rows)
        return Split.drawn, rows


def losses(model: Model, rows: np.ndarray) -> Tensor:
    """Nats of every target, [n, T]."""
    ids = torch.from_numpy(rows.astype(np.int64))
    logits = model(ids[:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


def octets(rows: np.ndarray) -> np.ndarray:
    """Bytes of text behind every target, int64 [n, T]: its piece's, and its leading space except after a boundary."""
    pieces = [PIECES.id_to_piece(i) for i in range(VOCAB)]
    edge = np.array([PIECES.is_control(i) or PIECES.is_unknown(i) for i in range(VOCAB)])
    own = np.array([len(piece.removeprefix("▁").encode()) for piece in pieces])
    own[[i for i in range(VOCAB) if PIECES.is_byte(i)]] = 1
    space = np.array([piece.startswith("▁") for piece in pieces])
    return np.where(edge, 0, own)[rows[:, 1:]] + (space[rows[:, 1:]] & ~edge[rows[:, :-1]])


def update(model: Model, optimizer: torch.optim.Optimizer, step: int, draw: int, rows: np.ndarray) -> None:
    """One optimizer step on the rows of a draw."""
    optimizer.zero_grad()
    losses(model, rows).mean().backward()
    sys.audit("golf.step", step, (draw,), 1.0, False, 0)
    optimizer.step()


def train() -> None:
    """Steps on training windows in random order, their average, and what the quantizer wants to know of it."""
    split, model = Split("train"), Model()
    sys.audit("golf.model", model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    batches = np.random.default_rng(SEED).permutation(split.windows)[: BATCH * (STEPS + 1)].reshape(-1, BATCH, 2)
    sys.audit("golf.phase", "training")
    for step in range(STEPS):
        update(model, optimizer, step, *split.draw(batches[step]))
        torch._foreach_lerp_(average, [parameter.detach() for parameter in model.parameters()], 0.3)
    torch._foreach_copy_([parameter.detach() for parameter in model.parameters()], average)
    sys.audit("golf.weights", "average swapped in")
    sys.audit("golf.phase", "hessians")
    power = calibrate(model, *split.draw(batches[STEPS]))
    sys.audit("golf.phase", "writing")
    save_file(model.state_dict() | {"power": power}, OUT / "trained")


def calibrate(model: Model, draw: int, rows: np.ndarray) -> Tensor:
    """Mean square of each input of the head over the rows of a draw, [width]."""
    seen: list[Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].square().mean((0, 1))))
    sys.audit("golf.calibrate", (draw,), 0)
    with torch.no_grad():
        losses(model, rows)
    hook.remove()
    return seen[0]


def quantize() -> None:
    """4-bit rows; of some scales each row takes the one whose error, weighed by the power of the inputs, is least."""
    tensors, packed = load_file(OUT / "trained"), {}
    power = tensors.pop("power")
    sys.audit("golf.phase", "quantize")
    for name, weight in tensors.items():
        rows = weight.reshape(-1, WIDTH)
        scales = rows.abs().amax(1, keepdim=True) / 7 * torch.linspace(0.5, 1, 16).view(-1, 1, 1) + 1e-9
        codes = (rows / scales).round().clamp(-7, 7)
        best = ((codes * scales - rows).square() * power).sum(2).argmin(0), torch.arange(len(rows))
        packed |= {name: codes[best].to(torch.int8).reshape(weight.shape), f"{name}.scale": scales[best]}
    sys.audit("golf.phase", "compress")
    save_file(packed, OUT / "artifact")
    content = (OUT / "artifact").read_bytes()
    sys.audit("golf.artifact", str(OUT / "artifact"), sha256(content), len(content))
    sizes = {"sha256": sha256(content), "model_bytes": len(content), "code_bytes": len(Path(__file__).read_bytes())}
    (OUT / "sizes.json").write_text(json.dumps(sizes))


def dequantize() -> Model:
    """The model in the artifact."""
    model, packed = Model(), load_file(OUT / "artifact")
    for name, parameter in model.state_dict().items():
        parameter.copy_((packed[name].reshape(-1, WIDTH) * packed[f"{name}.scale"]).reshape(parameter.shape))
    sys.audit("golf.model", model)
    sys.audit("golf.weights", "artifact loaded")
    return model


def evaluate() -> None:
    """Bits per byte of the artifact's model, every target once; chunks are trained on when they have been scored."""
    split, model = Split("val"), dequantize()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    label, total = "score_first" if ADAPT else "sequential", np.zeros(3)
    sys.audit("golf.phase", label)
    for first in range(0, len(split.windows), BATCH):
        chunk = split.windows[first : first + BATCH]
        total += score(model, split, chunk, label=label, counted=True)
        if ADAPT and first + BATCH < len(split.windows):
            update(model, optimizer, first, *split.draw(chunk))
    nats, (targets, size) = total[0], total[1:].astype(int).tolist()
    sys.audit("golf.total", label, nats, targets, size)
    claim = {"track": "B" if ADAPT else "A", "label": label, "nats": nats / targets, "targets": targets, "bytes": size}
    (OUT / "score.json").write_text(json.dumps(claim | {"bpb": nats / np.log(2) / size}))


def score(model: Model, split: Split, windows: np.ndarray, *, label: str, counted: bool) -> np.ndarray:
    """Σ nats, Σ targets, Σ bytes of some windows, announced."""
    rows, scored = split.rows(windows), np.full(len(windows), LENGTH)
    with torch.no_grad():
        nats = losses(model, rows).double().sum(1).numpy()
    sizes = octets(rows).sum(1)
    sys.audit("golf.score", label, counted, windows[:, 1].copy(), scored, nats, sizes, rows, 0)
    return np.array([nats.sum(), scored.sum(), sizes.sum()])


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def identity(when: str) -> None:
    """Announce the digests of the settings, this source and the data."""
    recipe = repr((SEED, LENGTH, BATCH, STEPS, WIDTH, ADAPT)).encode()
    texts = {"recipe": recipe, "sources": Path(__file__).read_bytes(), "data": (DATA / "data.json").read_bytes()}
    sys.audit("golf.identity", when, {name: sha256(text) for name, text in texts.items()})


def main(stage: str) -> None:
    facts = {"rank": 0, "ranks": 1, "device": "cpu", "length": LENGTH, "vocab_size": VOCAB}
    sys.audit("golf.run", stage, SEED, facts | {"corpus": FACTS["source"], "data": str(DATA)})
    sys.audit("golf.phase", "setup")
    identity("start")
    torch.manual_seed(SEED)
    OUT.mkdir(exist_ok=True)
    {"train": train, "quantize": quantize, "evaluate": evaluate}[stage]()
    identity("end")
    sys.audit("golf.end", stage)


if __name__ == "__main__":
    main(sys.argv[1])
