"""What a model is told of a picture beside its own business: its label, or whether it was changed."""

import jax

from vdm.errors import one_of, require

CONDITIONS = ("none", "label", "augmented")


def check(condition, spec):
    """Raises UserError where config.model.condition is none, or the data (data.Spec) has no labels."""
    one_of("config.model.condition", condition, CONDITIONS)
    require(
        condition != "label" or spec.classes > 0,
        "config.model.condition is 'label', but the data set has no labels; "
        "accepted here: 'none', 'augmented'.",
    )


def told(condition, batch, classes):
    """[batch, k] of a batch: its label as one of `classes`, or the flag; None where nothing is told."""
    if condition == "label":
        return jax.nn.one_hot(batch["label"], classes)
    if condition == "augmented":
        return batch["augmented"][:, None]
    return None
