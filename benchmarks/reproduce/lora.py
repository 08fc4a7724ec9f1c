"""Bayesian LoRA on a small text task: accuracy, calibration, unknown text, time, beside point LoRA, dropout, ensembles.

A Llama of two layers is trained from scratch as a language model on docstrings of six libraries
(:mod:`benchmarks.reproduce.docstrings`), then LoRA of rank 8 on all its linear layers and a new head learn from 300
labelled docstrings which library each is from. Unknown text is from two other libraries. Every method gets the same
base, adapters' size, batches and number of epochs; its setting is chosen by validation NLL (``--tune``). Seconds are
CPU time of training, by the point's.

    python -m benchmarks.reproduce.lora --tune --json lora.json
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import pyrobnn as pb
from benchmarks.reproduce.docstrings import LIBRARIES, NUM_WORDS, PADDING, Corpus, inputs
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments
from benchmarks.reproduce.tuning import Scores, Setting

ROWS, HELD, TEST, UNKNOWN = 600, 600, 900, 900
PRETRAINING, EPOCHS, BATCH, RATE = 2000, 12, 16, 2e-3
SCALE_RATE = 2e-2
DRAWS = 10
SCALES = Setting("prior scale · √fan-in", 1.0, (1.0, 3.0))
METHODS = {
    "point LoRA": Setting("weight decay", 0.0, (0.0, 0.3)),
    "MC dropout": Setting("rate", 0.1, (0.1, 0.2)),
    "ensemble of 5": SCALES,
    "mean field, BLoB form": SCALES,
    "mean field, A, B and head": SCALES,
    "SWAG": Setting("learning rate", 2e-3, (2e-3, 5e-3)),
    "Laplace, Kronecker": SCALES,
}
ADAPTERS, HEAD = "*lora_*", "*modules_to_save*"


def transformer(kind: str) -> Any:
    """A Llama of two layers, 64 wide; ``kind`` is a class of transformers."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=NUM_WORDS,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        num_labels=len(LIBRARIES),
        pad_token_id=PADDING,
        tie_word_embeddings=True,
    )
    return getattr(transformers, kind)(config)


def pretrained(corpus: Corpus, steps: int, path: Path | None) -> dict[str, Tensor]:
    """Weights of a language model of the training files' docstrings."""
    if path is not None and path.exists():
        return load_file(path)
    torch.manual_seed(0)
    net = transformer("LlamaForCausalLM")
    rows = corpus.parts["train"][0]
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        given, following = pb.lora.next_tokens(inputs(rows[torch.randint(len(rows), (64,))]))
        loss = F.cross_entropy(net(**given).logits.flatten(0, 1), following.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0:
            print(f"pretraining, step {step}: {float(loss.detach()):.2f} nats", flush=True)
    weights = {name: value.contiguous() for name, value in net.model.state_dict().items()}
    if path is not None:
        save_file(weights, path)
    return weights


def with_adapters(weights: dict[str, Tensor]) -> Any:
    """The pretrained network with fresh adapters and a fresh head."""
    import peft

    net = transformer("LlamaForSequenceClassification")
    net.model.load_state_dict(weights)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        return peft.get_peft_model(net, config)


class Loader(Batches):
    """Batches of the network's arguments with labels; a causal network needs no mask of padding at the right."""

    def __iter__(self) -> Any:
        """Mappings, as Hugging Face's loaders yield them."""
        return ({"input_ids": x, "labels": y} for x, y in super().__iter__())


def scaled(scale: float, name: str, parameter: Tensor, module: Any) -> dist.Distribution:
    """Standard deviation ``scale / √fan-in``; biases as a row of the weight."""
    return dist.Normal(0.0, scale / (parameter.shape[1] if parameter.dim() > 1 else 64) ** 0.5)


def train(
    method: str, setting: float, weights: dict[str, Tensor], loader: Loader, epochs: int
) -> Callable[[Tensor], Any]:
    """Fits a method; from rows of words to a prediction."""
    net = with_adapters(weights)
    num_data = len(loader.x)
    if method == "point LoRA":  # by plain torch
        net.train()
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=RATE, weight_decay=setting)
        for _ in range(epochs):
            for batch in loader:
                optimizer.zero_grad()
                net(**batch).loss.backward()
                optimizer.step()
        net.eval()
        model = pb.lora.model(net, pb.likelihoods.Categorical(), num_data=num_data)
        guide: Any = pb.guides.MAP(model)
        # The head is no site; both read the weights that were trained.
        return lambda rows: pb.predict(model, guide, {"input_ids": rows}, num_samples=1, batch_size=300)
    flat = method in ("MC dropout", "SWAG")  # as trained by plain torch: no prior to speak of
    prior: Any = dist.Normal(0.0, 100.0) if flat else partial(scaled, setting)
    random: Any = "A" if method == "mean field, BLoB form" else [ADAPTERS, HEAD]
    model = pb.lora.model(net, pb.likelihoods.Categorical(), prior, num_data=num_data, random=random)
    options: dict[str, Any] = {"epochs": epochs, "lr": RATE, "progress": False}
    if method.startswith("mean field"):
        guide = pb.guides.MeanField(model, init_scale=1e-2)
        elbo = pb.objectives.ELBO(temperature=min(1.0, num_data / guide.layout.size))  # as under the default prior
        pb.fit(model, guide, loader, scale_lr=SCALE_RATE, elbo=elbo, **options)
    elif method == "ensemble of 5":
        guide = pb.guides.DeltaMixture(model, num_members=5)
        pb.fit(model, guide, loader, **options)
    elif method == "MC dropout":
        guide = pb.guides.MCDropout(model, setting)
        pb.fit(model, guide, loader, **options)
    elif method == "SWAG":
        guide = pb.guides.SWAG(model, rank=10)
        collector = guide.collector(start=min(epochs // 2, epochs - 2))
        pb.fit(model, guide, loader, callbacks=[collector], **options | {"lr": setting})
    else:
        point = pb.guides.MAP(model)
        pb.fit(model, point, loader, **options)
        guide = pb.guides.Laplace(model, init=point, structure="kronecker")
        whole = [{"input_ids": x, "labels": y} for x, y in zip(loader.x.split(50), loader.y.split(50), strict=True)]
        guide.fit(model, whole, prior_precision="evidence")
    draws = 5 if "ensemble" in method else DRAWS
    return lambda rows: pb.predict(model, guide, {"input_ids": rows}, num_samples=draws, batch_size=300, seed=0)


def seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and the CPU time it took."""
    started = time.process_time()
    return work(), time.process_time() - started


def scores(predict: Callable[[Tensor], Any], rows: Tensor, labels: Tensor) -> Row:
    """Of known text."""
    probs = predict(rows).mean
    return {
        "accuracy": 100 * float(pb.metrics.accuracy(probs, labels)),
        "NLL": float(pb.metrics.nll(probs, labels)),
        "ECE": 100 * float(pb.metrics.expected_calibration_error(probs, labels)),
    }


def setup(options: argparse.Namespace) -> tuple[Corpus, dict[str, Tensor]]:
    """The corpus and the base, both kept where ``--cache`` says."""
    cache = Path(options.cache) if options.cache else None
    stored = None if cache is None else cache / "docstrings.safetensors"
    if stored is not None and stored.exists():
        tensors = load_file(stored)
        parts = dict.fromkeys(name.partition(".")[0] for name in tensors)
        corpus = Corpus({part: (tensors[f"{part}.rows"], tensors[f"{part}.labels"]) for part in parts})
    else:
        corpus = Corpus.read()
        if stored is not None:
            stored.parent.mkdir(parents=True, exist_ok=True)
            kept = {f"{part}.rows": rows for part, (rows, _) in corpus.parts.items()}
            save_file(kept | {f"{part}.labels": labels for part, (_, labels) in corpus.parts.items()}, stored)
    steps = 3 if options.quick else PRETRAINING
    return corpus, pretrained(corpus, steps, None if cache is None or options.quick else cache / "base.safetensors")


def chosen(options: argparse.Namespace) -> list[str]:
    """The methods that are asked for."""
    return [method for method in METHODS if not options.methods or method in options.methods]


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """One seed of every method, on test text."""
    corpus, weights = setup(options)
    epochs = 2 if options.quick else EPOCHS
    rows, labels = corpus.choose("train", ROWS, seed)
    test, unknown = corpus.choose("test", TEST, 0), corpus.choose("unknown", UNKNOWN, 0)[0]
    results, reference = {}, float("nan")
    for method in chosen(options):
        torch.manual_seed(seed)
        predict, time_taken = seconds(
            lambda method=method: train(method, options.settings[method], weights, Loader(rows, labels, BATCH), epochs)
        )
        reference = time_taken if method == "point LoRA" else reference
        known, other = predict(test[0]), predict(unknown)
        row = scores(lambda _, known=known: known, *test)
        row["AUROC unknown"] = 100 * float(pb.metrics.auroc(known.total, other.total))
        if method != "point LoRA":
            row["AUROC, MI"] = 100 * float(pb.metrics.auroc(known.epistemic, other.epistemic))
        results[method] = row | {"time": time_taken / reference}
    return results


def tune(seed: int, options: argparse.Namespace) -> Scores:
    """Validation NLL of each candidate of every method."""
    corpus, weights = setup(options)
    epochs = 2 if options.quick else EPOCHS
    rows, labels = corpus.choose("train", ROWS, seed)
    held = corpus.choose("validation", HELD, 0)
    found: dict[str, dict[float, float]] = {}
    for method in chosen(options):
        for candidate in METHODS[method].candidates:
            torch.manual_seed(seed)
            predict = train(method, candidate, weights, Loader(rows, labels, BATCH), epochs)
            row = scores(predict, *held)
            print(f"{method}, {candidate}: {row}", flush=True)
            found.setdefault(method, {})[candidate] = row["NLL"]
    return found


def main(argv: list[str] | None = None) -> dict[str, list[Row]]:
    """Runs the experiment."""
    parser = arguments(__doc__)
    parser.add_argument("--cache", metavar="DIRECTORY", help="keeps the parsed text and the base here")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these")
    return Experiment("Bayesian LoRA", run, settings=METHODS, tune=tune).main(parser, argv)


if __name__ == "__main__":
    main()
