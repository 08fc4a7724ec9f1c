"""What a history can tell."""

from __future__ import annotations

import json

from pyrobnn.training import History

ENTRIES = {"elbo": -2.5, "log_likelihood": -1.5, "kl": 1.0, "loss": 2.5, "learning_rate": 0.1, "seconds": 3.0}


def test_entries_are_added_by_epoch() -> None:
    history = History()
    assert history.epochs == 0
    history.append(ENTRIES)
    history.append(ENTRIES | {"elbo": -2.0})
    assert history.epochs == 2
    assert history.elbo == [-2.5, -2.0]
    assert history.kl == [1.0, 1.0]
    assert history.validation == []


def test_the_summary_names_the_parts_in_nats_per_datum() -> None:
    history = History()
    history.append(ENTRIES)
    assert history.summary() == "ELBO -2.5000 = -1.5000 - 1.0000 nats/datum"
    history.append(ENTRIES | {"validation": -0.25})
    assert history.summary() == "ELBO -2.5000 = -1.5000 - 1.0000, validation -0.2500 nats/datum"


def test_json_and_back() -> None:
    history = History(steps=3, stopped="epochs", divergence_name="-log prior")
    history.append(ENTRIES)
    assert History(**json.loads(json.dumps(history.to_dict()))) == history


def test_a_point_has_no_elbo_to_report() -> None:
    history = History(divergence_name="-log prior")
    history.append({"elbo": -2.5, "log_likelihood": -1.5, "kl": 1.0})
    assert history.summary() == "log joint -2.5000 = -1.5000 - 1.0000 nats/datum"
