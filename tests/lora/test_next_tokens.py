"""Causal language models scored per token."""

from __future__ import annotations

import pytest
import torch

import pyrobnn as pb
from tests.lora.networks import batches, language_model, randomized, sequences


def test_targets_are_the_tokens_that_follow() -> None:
    tokens = torch.tensor([[5, 6, 7, 0], [1, 2, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    inputs, targets = pb.lora.next_tokens({"input_ids": tokens, "attention_mask": mask})
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert targets.tolist() == [[6, 7, -100, -100], [2, 3, 4, -100]]


def test_a_prompt_is_not_scored_and_padding_at_the_left_neither() -> None:
    tokens = torch.tensor([[0, 5, 6, 7]])
    labels = torch.tensor([[-100, -100, 6, 7]])
    mask = torch.tensor([[0, 1, 1, 1]])
    _, targets = pb.lora.next_tokens({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    assert targets.tolist() == [[-100, 6, 7, -100]]
    _, targets = pb.lora.next_tokens({"input_ids": tokens, "attention_mask": mask})
    assert targets.tolist() == [[5, 6, 7, -100]]  # the first token follows padding, and is predicted from nothing


def test_the_log_likelihood_is_that_of_hugging_face() -> None:
    """Its loss is the mean over scored tokens; log probabilities of rows add up to minus the sum."""
    net = randomized(language_model()).eval()
    batch = sequences()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        mean = net(**batch, labels=labels).loss
    count = int((labels[:, 1:] != -100).sum())
    model = pb.lora.model(net, pb.likelihoods.Categorical(ignore_index=-100), num_data=6)
    inputs, targets = pb.lora.next_tokens(batch)
    pred = pb.predict(model, pb.guides.MAP(model), inputs, num_samples=1)
    torch.testing.assert_close(-pred.log_prob(targets).sum(), mean * count)
    assert int((targets != -100).sum()) == count


def test_it_reads_the_batches_of_fit_and_sequences_are_the_data() -> None:
    """Three epochs at a point raise the log likelihood, which is counted by row."""
    torch.manual_seed(0)
    model = pb.lora.model(language_model(), pb.likelihoods.Categorical(ignore_index=-100), num_data=6)
    batch = sequences()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    guide = pb.guides.MAP(model)
    loader = batches(batch, labels)
    history = pb.fit(model, guide, loader, epochs=5, lr=2e-2, batch=pb.lora.next_tokens, progress=False)
    assert history.log_likelihood[-1] > history.log_likelihood[0]
    inputs, targets = pb.lora.next_tokens({**batch, "labels": labels})
    assert pb.predict(model, guide, inputs, num_samples=1).log_prob(targets).mean() > history.log_likelihood[0]


def test_kronecker_laplace_of_a_language_model_counts_scored_tokens_only() -> None:
    """What stands under ignored labels has no influence on the last layer's factor of the outputs."""
    torch.manual_seed(0)
    net = randomized(language_model())
    model = pb.lora.model(net, pb.likelihoods.Categorical(ignore_index=-100), num_data=6)
    inputs, targets = pb.lora.next_tokens(sequences())
    guide = pb.guides.Laplace(model, structure="kronecker").fit(model, [(inputs, targets)])
    assert len(guide.covered) == 10
    none = pb.guides.Laplace(model, structure="kronecker").fit(model, [(inputs, torch.full_like(targets, -100))])
    assert float(none.log_likelihood) == 0.0
    prior = none.joint().variance
    assert bool((guide.joint().variance <= prior * (1 + 1e-4)).all())
    assert float((guide.joint().variance / prior).mean()) < 0.9


def test_wrong_batches_are_refused() -> None:
    with pytest.raises(TypeError, match="batch: expected a mapping with input_ids, got list"):
        pb.lora.next_tokens([torch.ones(2, 3)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch: expected input_ids, a tensor"):
        pb.lora.next_tokens({"tokens": torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"batch: labels has shape \[2, 2\], but input_ids \[2, 3\]"):
        pb.lora.next_tokens({"input_ids": torch.ones(2, 3), "labels": torch.ones(2, 2)})
