"""Custom estimators, with their fields and refusals; models with impossible numbers are refused."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from conftest import make_config
import exact
from vdm.contract import Ability, Draw, check_draw
from vdm.errors import UserError
from vdm.estimate import combine
from vdm.evaluation import estimator
from vdm.evaluation.elbo import make_elbo
from vdm.evaluation.estimator import Estimator, Result
from vdm.evaluation.table import Row
from vdm.run import Run
from vdm.train import require_possible

pytestmark = pytest.mark.usefixtures("single")

LOG_P = exact.log_probabilities((2, 2, 1), 4)
IMAGES, _ = exact.images(LOG_P, 32)


@dataclasses.dataclass(frozen=True)
class Mine(Estimator):
    bits: float = 2.0

    def measure(self, config, run, done):
        values = np.full((1, len(IMAGES)), self.bits * 4 * np.log(2.0))
        return Result([Row("mine", "x", combine([(1, {"bpd": values[0]})], (2, 2, 1)), 1, 0.0)])


@dataclasses.dataclass(frozen=True)
class Text(Mine):
    needs = frozenset({"EXACT"})


@dataclasses.dataclass(frozen=True)
class One(Mine):
    needs = Ability.EXACT


@dataclasses.dataclass(frozen=True)
class RowAlone(Mine):
    def measure(self, config, run, done):
        return super().measure(config, run, done).rows[0]


@dataclasses.dataclass(frozen=True)
class RowInRows(Mine):
    def measure(self, config, run, done):
        return Result(super().measure(config, run, done).rows[0])


@dataclasses.dataclass(frozen=True)
class Empty(Mine):
    def measure(self, config, run, done):
        return Result([])


@dataclasses.dataclass(frozen=True)
class Twice(Mine):
    def measure(self, config, run, done):
        return Result(super().measure(config, run, done).rows * 2)


@dataclasses.dataclass(frozen=True)
class Beside(Mine):
    def measure(self, config, run, done):
        return Result([done[0], *super().measure(config, run, done).rows])


@dataclasses.dataclass(frozen=True)
class Number(Mine):
    def measure(self, config, run, done):
        return Result([Row("mine", "x", 3.0, 1, 0.0)])


@dataclasses.dataclass(frozen=True)
class Scalars(Mine):
    def measure(self, config, run, done):
        (row,) = super().measure(config, run, done).rows
        values = row.estimate.values | {"part": np.zeros(3)}
        return Result([dataclasses.replace(row, estimate=dataclasses.replace(row.estimate, values=values))])


@dataclasses.dataclass(frozen=True)
class Broken(Mine):
    def measure(self, config, run, done):
        return {}["no such key"]


class Plain(Mine):
    more: float = 1.0


def measured(name, **fields):
    flags = {f"eval.{name.lower()}.{field}": value for field, value in fields.items()}
    own = f"{__name__}:{name}"
    config = make_config({"eval.estimators": own, "eval.batch_size": 32, "eval.passes": 2} | flags)
    model = exact.model(LOG_P, -9.0, 8.0)
    state = types.SimpleNamespace(step=0, ema={"schedule": {}, "net": {}})
    run = Run(exact.split(IMAGES, 4), model, state)
    return estimator.measure(config, run, estimator.choose(config, model)).rows


def test_its_row_stands_beside_the_elbo_and_its_field_is_of_the_config():
    rows = measured("Mine", bits=3.0)
    assert [row.name for row in rows] == ["ELBO, T → ∞", "mine"]
    assert rows[1].estimate.mean["bpd"] == pytest.approx(3.0)
    beside = [row.name for row in measured("Beside")]
    assert beside == ["ELBO, T → ∞", "mine"], "an earlier row is not repeated"


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        ("Mine", {"bits": -0.5}, "the row 'mine' of .*Mine is -0.5000 bits/dim, which is impossible"),
        ("Mine", {"bits": float("nan")}, "the row 'mine' of estimator .*Mine is not a number"),
        ("RowAlone", {}, "RowAlone gives a Row; accepted: a Result whose rows are a list of Row"),
        ("RowInRows", {}, "RowInRows gives a Result of Row; accepted: a Result whose rows are a list of Row"),
        ("Empty", {}, "Empty gives no rows and no checks"),
        ("Twice", {}, "the row 'mine' of estimator .*Twice has the name of another row"),
        (
            "Number",
            {},
            "the row 'mine' of estimator .*Number has an estimate of float; accepted: an Estimate",
        ),
        ("Scalars", {}, r"has 'part' of shape \[3\]; accepted: a number for each image, \[32\]"),
        ("Broken", {}, r"Broken fails with KeyError: 'no such key' \(.*test_own_estimator.py:\d+\)"),
        ("Text", {}, "needs 'EXACT'; accepted: needs = frozenset of vdm.contract.Ability.EXACT"),
        ("One", {}, "needs <Ability.EXACT.*; accepted: needs = frozenset"),
        ("Plain", {}, "whose field 'more' is not a config field, as the class is not a dataclass"),
    ],
)
def test_what_is_wrong_is_refused(name, fields, text):
    with pytest.raises(UserError, match=text):
        measured(name, **fields)


@dataclasses.dataclass(frozen=True)
class Changed:
    """A model whose draw is altered by `change`."""

    of: object
    change: object

    def __getattr__(self, name):
        return getattr(self.of, name)

    def draw(self, params, rng, batch, train=False, times=None):
        return self.change(self.of.draw(params, rng, batch, train, times))


def terms(change):
    return lambda draw: draw._replace(terms=change(draw.terms))


IMPOSSIBLE = {
    "the diffusion term has the wrong sign": (
        terms(lambda t: t | {"diffusion": -t["diffusion"]}),
        r"the bound is -\d.* bits/dim, which is impossible: .* diffusion -\d",
    ),
    "a term is no number": (terms(lambda t: t | {"prior": jnp.nan * t["prior"]}), "not a number in its term "
    "'prior'"),
    "the diffusion term is left out": (
        terms(lambda t: {"prior": t["prior"]}),
        "its draw has no term diffusion; accepted: both. Its terms: prior",
    ),
    "there is no denoising": (lambda draw: Draw(draw.terms), "its draw has no denoising"),
    "the mean over the batch": (
        terms(lambda t: t | {"prior": jnp.mean(t["prior"])}), r"draws the term 'prior' as float32 \[\]",
    ),
    "no draw": (lambda draw: draw.terms, "draws a dict; accepted: a Draw"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_model_whose_numbers_cannot_be_is_refused(name):
    change, text = IMPOSSIBLE[name]
    model = Changed(exact.model(LOG_P, -9.0, 8.0), change)
    config = exact.config(batch_size=32)
    with pytest.raises(UserError, match=text):
        make_elbo(model, config, exact.split(IMAGES, 4))({"schedule": {}, "net": {}}, 20)


def test_an_eps_hat_that_would_be_broadcast_is_refused():
    model = exact.model(LOG_P, -9.0, 8.0)
    arrays = types.SimpleNamespace(eps_hat=jnp.zeros((32, 1, 1, 1)), z_t=jnp.zeros((32, 2, 2, 1)))
    wrong = Draw({"prior": jnp.zeros(32), "diffusion": jnp.zeros(32)}, arrays)
    text = r"predicts ε̂ as float32 \[32, 1, 1, 1\] of z_t as float32 \[32, 2, 2, 1\]"
    with pytest.raises(UserError, match=text):
        check_draw(model, wrong, 32)


def test_a_training_loss_below_zero_is_refused():
    require_possible(0.0)
    with pytest.raises(UserError, match="the ELBO of the training images is -3 nats, which is impossible"):
        require_possible(-3.0)
