"""What a network is conditioned on in addition to time: an image's label, or whether it was augmented."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

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


def withhold(
    condition: Float[Array, "batch size"] | None, keys: Key[Array, "batch"], share: float
) -> Float[Array, "batch size"] | None:
    """The condition, but zeros for a random share of the images (Ho & Salimans 2022)."""
    if condition is None:
        return None
    return condition * jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - share, (1,)))(keys)


def join(*parts: Float[Array, "batch _"] | None) -> Float[Array, "batch size"] | None:
    """The parts that are not None side by side; None where all are."""
    found = [part for part in parts if part is not None]
    if len(found) < 2:
        return found[0] if found else None
    return jnp.concatenate(found, axis=-1)


def of_batch(condition: str, batch: Batch, classes: int) -> Float[Array, "batch size"] | None:
    """The label as one of `classes`, or the flag; None for nothing."""
    if condition == "label":
        return jax.nn.one_hot(batch["label"], classes)
    if condition == "augmented":
        return batch["augmented"][:, None]
    return None
