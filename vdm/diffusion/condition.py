"""The conditions of a network besides time: an image's label, or whether the image was augmented."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vdm.component import accept, choose
from vdm.contract import Batch

CONDITIONS = ("none", "label", "augmented")


def check(condition: str, classes: int) -> None:
    """Raises Refused if the field `condition` is not in CONDITIONS, or there are no labels."""
    choose("condition", condition, CONDITIONS)
    accept(
        "condition",
        condition != "label" or classes > 0,
        "'none', 'augmented', as the data set has no labels",
    )


def keeps_label(keys: Key[Array, "batch"], share: float) -> Bool[Array, "batch 1"]:
    """False for a random share of the images, whose label is withheld (Ho & Salimans 2022)."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - share, (1,)))(keys)


def join(*parts: Float[Array, "batch _"] | None) -> Float[Array, "batch size"] | None:
    """Concatenates the parts that are not None; None if all parts are None."""
    found = [part for part in parts if part is not None]
    if len(found) < 2:
        return found[0] if found else None
    return jnp.concatenate(found, axis=-1)


def of_batch(condition: str, batch: Batch, classes: int) -> Float[Array, "batch size"] | None:
    """The label as a one-hot vector, or the flag of augmentation; None without a condition."""
    if condition == "label":
        return jax.nn.one_hot(batch["label"], classes)
    if condition == "augmented":
        return batch["augmented"][:, None]
    return None
