"""Data sets of the experiments, from the directory that ``PYROBNN_DATA`` names (default ``../shared/data``)."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "CAMVID_CLASSES",
    "MissingDataError",
    "camvid",
    "cifar10",
    "fashion",
    "kmnist",
    "mnist",
    "not_mnist",
    "omniglot",
    "read_idx",
    "root",
    "uci",
]

CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
"""CamVid's classes 0 to 10."""


class MissingDataError(FileNotFoundError):
    """The data are not on this machine; the message says where they were looked for."""


def root() -> Path:
    """The data's directory.

    Raises:
        MissingDataError: If there is none.
    """
    path = Path(os.environ.get("PYROBNN_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))
    if not path.is_dir():
        raise MissingDataError(f"PYROBNN_DATA: there is no directory {path}; set it to where the data sets are.")
    return path


def read_idx(path: Path) -> Tensor:
    """An IDX file, gzipped or not, as a tensor of bytes."""
    compressed = path.with_name(path.name + ".gz")
    if path.exists():
        content = path.read_bytes()
    elif compressed.exists():
        content = gzip.decompress(compressed.read_bytes())
    else:
        raise MissingDataError(f"PYROBNN_DATA: there is neither {path} nor {compressed.name} beside it.")
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())


def _idx_pair(name: str, split: str) -> tuple[Tensor, Tensor]:
    """Images ``[N, 1, 28, 28]`` from 0 to 1, and labels."""
    folder = root() / name / "raw"
    images = read_idx(folder / f"{split}-images-idx3-ubyte").float().div(255).unsqueeze(1)
    return images, read_idx(folder / f"{split}-labels-idx1-ubyte").long()


def mnist(split: str = "train") -> tuple[Tensor, Tensor]:
    """MNIST, ``"train"`` or ``"t10k"``."""
    return _idx_pair("MNIST", split)


def fashion(split: str = "t10k") -> tuple[Tensor, Tensor]:
    """Fashion-MNIST."""
    return _idx_pair("FashionMNIST", split)


def kmnist() -> tuple[Tensor, Tensor]:
    """KMNIST's test images."""
    return _idx_pair("KMNIST", "t10k")


def not_mnist() -> tuple[Tensor, Tensor]:
    """notMNIST's test images."""
    return _idx_pair("notMNIST", "t10k")


def omniglot(split: str = "evaluation") -> tuple[Tensor, Tensor]:
    """Omniglot, ``"background"`` or ``"evaluation"``: drawings ``[N, 1, 28, 28]`` from 0 to 1, white on black."""
    path = root() / "omniglot" / "omniglot28.npz"
    if not path.exists():
        raise MissingDataError(f"PYROBNN_DATA: there is no {path}.")
    archive = np.load(path)
    images = torch.from_numpy(archive[f"{split}_images"]).float().div(255).unsqueeze(1)
    return images, torch.from_numpy(archive[f"{split}_labels"].astype(np.int64))


def cifar10(split: str = "train") -> tuple[Tensor, Tensor]:
    """CIFAR-10, ``"train"`` or ``"test"``, ``[N, 3, 32, 32]`` from 0 to 1: pixels went through JPEG once more."""
    path = root() / "cifar10_jpeg" / "cifar10_jpeg.npz"
    if not path.exists():
        raise MissingDataError(f"PYROBNN_DATA: there is no {path}.")
    from PIL import Image  # matplotlib brings it

    archive = np.load(path)
    content, offsets = archive[f"{split}_jpeg"].tobytes(), archive[f"{split}_offsets"]
    images = [np.asarray(Image.open(io.BytesIO(content[start:end]))) for start, end in itertools.pairwise(offsets)]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(255)
    return x, torch.from_numpy(archive[f"{split}_labels"].astype(np.int64))


def camvid(split: str = "train") -> tuple[Tensor, Tensor]:
    """CamVid at 120×160, ``"train"``, ``"val"`` or ``"test"``: images ``[N, 3, 120, 160]`` from 0 to 1 and a label for
    each pixel, ``[N, 120, 160]``, of which 11 is void."""
    path = root() / "camvid" / "camvid_120x160.npz"
    if not path.exists():
        raise MissingDataError(f"PYROBNN_DATA: there is no {path}.")
    archive = np.load(path)
    x = torch.from_numpy(archive[f"{split}_images"]).permute(0, 3, 1, 2).float().div(255)
    return x, torch.from_numpy(archive[f"{split}_labels"].astype(np.int64))


def uci(name: str, split: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test pairs ``(x [N, d], y [N, 1])`` of a UCI regression set, in its own units and standard split."""
    folder = root() / "UCI_Datasets" / name / "data"
    if not folder.is_dir():
        raise MissingDataError(f"PYROBNN_DATA: there is no {folder}.")
    table = np.loadtxt(folder / "data.txt")
    features = np.loadtxt(folder / "index_features.txt").astype(int)
    target = np.loadtxt(folder / "index_target.txt").astype(int)
    pairs = []
    for part in ("train", "test"):
        rows = np.loadtxt(folder / f"index_{part}_{split}.txt").astype(int)
        x, y = table[np.ix_(rows, features)], table[rows, target]
        pairs.append((torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32).unsqueeze(-1)))
    return pairs[0], pairs[1]
