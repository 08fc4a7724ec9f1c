"""Data sets of the experiments, from the directory that ``PYROBNN_DATA`` names (default ``../shared/data``)."""

from __future__ import annotations

import bz2
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
    "metro_traffic",
    "mnist",
    "not_mnist",
    "omniglot",
    "read_idx",
    "root",
    "uber_pickups",
    "uci",
    "usps",
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


def usps(split: str = "train") -> tuple[Tensor, Tensor]:
    """USPS digits ``[N, 1, 16, 16]`` from 0 to 1, ``"train"`` or ``"test"``, and labels."""
    path = root() / "USPS" / {"train": "usps.bz2", "test": "usps.t.bz2"}[split]
    if not path.exists():
        raise MissingDataError(f"PYROBNN_DATA: there is no {path}.")
    rows = [line.split() for line in bz2.decompress(path.read_bytes()).decode().splitlines() if line]
    pixels = [[float(entry.partition(":")[2]) for entry in row[1:]] for row in rows]
    images = torch.tensor(pixels).add(1).div(2).reshape(-1, 1, 16, 16)
    return images, torch.tensor([int(float(row[0])) - 1 for row in rows])


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


def metro_traffic() -> tuple[Tensor, Tensor]:
    """Vehicles per hour on a motorway ``[48204, 1]``, in the order of time, and inputs ``[48204, 49]``.

    Inputs are the hour, the day of the week and the kind of weather one-hot, the day of the year as an angle, whether
    the day is a holiday, temperature, rain, snow and clouds. Two entries that are faults of the sensors (0 K,
    9831 mm of rain) are cut to the range of the others.
    """
    table = _table("metro_traffic/Metro_Interstate_Traffic_Volume.csv")
    when = table["date_time"].astype("datetime64[s]")
    days = when.astype("datetime64[D]")
    holidays = np.isin(days, days[table["holiday"] != "None"])  # which only the row of midnight says
    weather = [
        table["temp"].clip(240.0, 320.0),
        np.log1p(table["rain_1h"].clip(0.0, 60.0)),
        table["snow_1h"],
        table["clouds_all"],
        holidays,
    ]
    kinds = table["weather_main"][:, None] == np.unique(table["weather_main"])
    angle = 2 * np.pi * (days - when.astype("datetime64[Y]").astype("datetime64[D]")).astype(float) / 365.25
    season = np.stack([np.sin(angle), np.cos(angle)], 1)
    return _by_time(when, [_calendar(when), season, np.stack(weather, 1), kinds], table["traffic_volume"])


def uber_pickups() -> tuple[Tensor, Tensor]:
    """Pickups per hour and borough of New York ``[21715, 1]``, in the order of time, and inputs ``[21715, 46]``.

    Inputs are the hour, the day of the week and the borough one-hot, whether the day is a holiday, and the weather.
    The five boroughs only: Newark's airport and unknown places have hardly a pickup.
    """
    table = _table("uber_nyc/uber_nyc_enriched.csv")
    table = table[~np.isin(table["borough"], ["EWR", "NA"])]
    when = table["pickup_dt"].astype("datetime64[s]")
    names = ("spd", "vsb", "temp", "dewp", "slp", "pcp01", "pcp06", "pcp24", "sd")
    weather = np.stack([table[name] for name in names] + [table["hday"] == "Y"], 1)
    boroughs = table["borough"][:, None] == np.unique(table["borough"])
    return _by_time(when, [_calendar(when), weather, boroughs], table["pickups"])


def _table(name: str) -> np.ndarray:
    path = root() / name
    if not path.exists():
        raise MissingDataError(f"PYROBNN_DATA: there is no {path}.")
    return np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf8")


def _calendar(when: np.ndarray) -> np.ndarray:
    """Hour and day of the week, one-hot ``[N, 31]``."""
    hours = (when.astype("datetime64[h]").astype(int) % 24)[:, None] == np.arange(24)
    days = ((when.astype("datetime64[D]").astype(int) + 3) % 7)[:, None] == np.arange(7)
    return np.concatenate([hours, days], 1)


def _by_time(when: np.ndarray, inputs: list[np.ndarray], targets: np.ndarray) -> tuple[Tensor, Tensor]:
    order = np.argsort(when, kind="stable")
    x = np.concatenate(inputs, 1)[order].astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(targets[order].astype(np.float32)).unsqueeze(-1)
