"""What a network is conditioned on beside time: the label of a picture, or whether it was augmented."""

import jax
from jaxtyping import Array, Float

from vdm.component import accept, choose
from vdm.contract import Batch

CONDITIONS = ("none", "label", "augmented")


def check(condition: str, classes: int) -> None:
    """Raises Refused where the field `condition` is none of CONDITIONS, or there are no labels."""
    choose("condition", condition, CONDITIONS)
    accept(
        "condition",
        condition != "label" or classes > 0,
        "'none', 'augmented', as the data set has no labels",
    )


def of_batch(condition: str, batch: Batch, classes: int) -> Float[Array, "batch size"] | None:
    """The label as one of `classes`, or the flag; None for nothing."""
    if condition == "label":
        return jax.nn.one_hot(batch["label"], classes)
    if condition == "augmented":
        return batch["augmented"][:, None]
    return None
