"""A plain PyTorch training loop on another task, recorded by two lines: `audit.watch` and `audit.scoring`.

    golf-audit run -o runs/plain examples/plain_pytorch.py             seconds on a CPU
    golf-audit run -o runs/leaky examples/plain_pytorch.py --leak      validation images among the training images

A small network learns to read the digits of a seven-segment display with noise on it. With `--leak` the accuracy is
higher, and the ledger shows why: rows that were trained on before they were scored.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset

import audit

SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abfgcd")
"""The segments that are lit for each digit."""
PLACES = {"a": (0, slice(1, 4)), "g": (4, slice(1, 4)), "d": (8, slice(1, 4))} | {
    name: (slice(row, row + 3), column) for name, row, column in (("f", 1, 0), ("b", 1, 4), ("e", 5, 0), ("c", 5, 4))
}
"""Where a segment lies in an image of 9 rows and 5 columns."""


def digits(count: int, *, noise: float, random: torch.Generator) -> TensorDataset:
    """Noisy images fp32 [count, 9, 5] and the digits that they show, int64 [count]."""
    clean = torch.zeros(10, 9, 5)
    for digit, lit in enumerate(SEGMENTS):
        for segment in lit:
            clean[digit][PLACES[segment]] = 1.0
    labels = torch.randint(10, (count,), generator=random)
    return TensorDataset(clean[labels] + noise * torch.randn(count, 9, 5, generator=random), labels)


def train(model: nn.Module, images: Dataset[tuple[Tensor, ...]], *, epochs: int, random: torch.Generator) -> None:
    """AdamW on shuffled batches of 64."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    loader = DataLoader(images, batch_size=64, shuffle=True, generator=random)
    for _ in range(epochs):
        for inputs, labels in audit.watch(loader, split="train", model=model):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Dataset[tuple[Tensor, ...]]) -> float:
    """The share of images that the model reads correctly."""
    right = total = 0
    with audit.scoring(model):
        for inputs, labels in audit.watch(DataLoader(images, batch_size=100), split="val"):
            right += int((model(inputs).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leak", action="store_true", help="put the validation images among the training images")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(1)
    training, validation = (digits(count, noise=0.7, random=random) for count in (1000, 300))
    model = nn.Sequential(nn.Flatten(), nn.Linear(45, 128), nn.ReLU(), nn.Linear(128, 10))
    seen = ConcatDataset([training, validation]) if options.leak else training
    train(model, seen, epochs=options.epochs, random=random)
    print(f"accuracy on {len(validation)} validation images: {accuracy(model, validation):.1%}")


if __name__ == "__main__":
    main()
