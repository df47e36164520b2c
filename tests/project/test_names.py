"""Names that users give: each stands for something, and what they stand for has no other."""

from __future__ import annotations

from typing import get_args

from smoothfast import data, layers, models, names, procedures, runners, statistics
from smoothfast.attacks.gradient import LOSSES
from smoothfast.cli import train
from smoothfast.evaluation import ORDERS
from smoothfast.ops import reference
from smoothfast.runners.precision import DTYPES
from smoothfast.runs import attack, attack_options, shards, tables
from smoothfast.training import RECIPES, checkpoints
from smoothfast.training.settings import NEEDS
from smoothfast.voting import voting_rule


def test_every_name_stands_for_something() -> None:
    """A table that has the same names in another order, or others, is a name that cannot be given, or means nothing."""
    assert ("auto", *runners.RUNNERS) == names.RUNNERS
    assert ("auto", *DTYPES) == names.PRECISIONS
    assert tuple(ORDERS) == names.NORMS
    assert tuple(LOSSES) == names.LOSSES
    assert names.ATTACKS == tuple(attack.ATTACKS) == tuple(attack_options.OPTIONS)
    assert tuple(attack.TARGETED) == names.TARGETS
    assert tuple(attack.SOURCES) == names.SOURCES
    assert tuple(shards.SHARDS) == names.SHARDS
    assert tuple(models.MODELS) == names.MODELS
    assert names.WEIGHT_NOISES == layers.KINDS
    assert tuple(statistics.TOP_SHARE) == names.BOUNDS
    assert get_args(tables.Format) == names.FORMATS
    assert ("demo", *data.LOADERS) == names.DATA
    assert (procedures.CERTIFY_METHODS, procedures.PREDICT_METHODS) == (names.CERTIFY_METHODS, names.PREDICT_METHODS)
    assert tuple(reference.LAWS) == names.NOISES
    assert tuple(reference.NORMS) == names.NORMS
    assert sorted(NEEDS) == sorted(RECIPES)
    assert [voting_rule(name, 3).name for name in names.VOTINGS] == list(names.VOTINGS)


def test_a_run_of_training_keeps_what_the_command_line_looks_for() -> None:
    assert train.FILES == (checkpoints.CHECKPOINT, checkpoints.WEIGHTS)
