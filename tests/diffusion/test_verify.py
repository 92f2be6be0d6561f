"""Wrong components are refused in one line that says what is wrong; correct ones are accepted."""

import contextlib
import dataclasses
import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from conftest import make_config
from vdm import run as run_lib, step
from vdm.component import REGISTRIES
from vdm.data.dataset import Spec
from vdm.diffusion import verify
from vdm.diffusion.denoiser import Eps, Parameterisation
from vdm.diffusion.sampler import Ancestral, Sampler
from vdm.diffusion.schedule import LearnedLinear, Schedule
from vdm.diffusion.times import IID, Times
from vdm.errors import UserError
from vdm.objective import Objective

pytestmark = pytest.mark.usefixtures("single")


class Line(Schedule):
    """A correct schedule, which the wrong ones alter."""

    def __call__(self, t):
        return self.gamma_min + (self.gamma_max - self.gamma_min) * self.way(t)

    def way(self, t):
        return t


class Falling(Line):
    def way(self, t):
        return 1.0 - t


class Flat(Line):
    def way(self, t):
        return 0.0 * t


class Dented(Line):
    def way(self, t):
        return t + 0.2 * jnp.sin(2.0 * math.pi * t) * (t > 0.3) * (t < 0.7)


class Jumping(Line):
    def way(self, t):
        return jnp.where(t < 0.4, 0.5 * t, 0.5 + 0.5 * t)


class Stairs(Line):
    def way(self, t):
        return jnp.round(t * 1_000.0) / 1_000.0


class NaN(Line):
    def way(self, t):
        return jnp.log(t) * jnp.sqrt(0.5 - t)


class NaNAtEnd(Line):
    def way(self, t):
        return jnp.where(t == 1.0, jnp.nan, t)


class WrongSlope(Line):
    def way(self, t):
        return t + jax.lax.stop_gradient(t**2 - t)


class WrongEnds(Line):
    def way(self, t):
        return 0.9 * t


class Scalar(Line):
    def way(self, t):
        return jnp.mean(t)


class SaysPerValue(Line):
    per_value = True


class IsPerValue(Line):
    def way(self, t):
        return jnp.broadcast_to(t[..., None, None, None], (*t.shape, *self.shape))


class MovesEnds(LearnedLinear):
    learned_ends = False


class SaysLearnedEnds(Line):
    learned_ends = True


class SaysInterior(Line):
    learned_interior = True


class EndsAsInterior(LearnedLinear):
    learned_interior = True

    def is_interior(self, names):
        return True


class Bent(Line):
    """A correct schedule that is learned between its ends."""

    learned_interior = True

    def is_interior(self, names):
        return True

    @nn.compact
    def __call__(self, t):
        bend = jnp.tanh(self.param("bend", nn.initializers.constant(0.3), ()))
        return self.gamma_min + (self.gamma_max - self.gamma_min) * t * (1.0 + 0.9 * bend * (1.0 - t))


class Raises(Line):
    def way(self, t):
        raise RuntimeError("no table here")


SCHEDULES = {
    Falling: r"does not increase: γ\(0\) = 5 and γ\(1\) = -13.3",
    Flat: r"does not increase: γ\(0\) = -13.3 and γ\(1\) = -13.3",
    Dented: "decreases by .* at t = ",
    Jumping: "a slope that is not its derivative, or it jumps: between t = ",
    Stairs: "a slope that is not its derivative, or it jumps: .* integrates to 0",
    NaN: r"gives γ\(t\) = (nan|-inf|inf) at t = ",
    NaNAtEnd: r"gives γ\(t\) = nan at t = 1",
    WrongSlope: "a slope that is not its derivative",
    WrongEnds: "to 3.17, but its gamma_min is -13.3 and its gamma_max 5",
    Scalar: "one γ for each time, as its per_value is False",
    SaysPerValue: "a γ for each value of an image, as its per_value is True",
    IsPerValue: "one γ for each time, as its per_value is False",
    MovesEnds: r"parameters that move γ\(0\) or γ\(1\), but its property learned_ends is False",
    SaysLearnedEnds: "learned_ends = True, but none of its parameters moves",
    SaysInterior: "learned_interior = True, but none of the parameters for which its is_interior",
    EndsAsInterior: "for which its is_interior returns True",
    Raises: "fails with RuntimeError: no table here",
}


def check_schedule(cls, **fields):
    schedule = cls(shape=(2, 2, 1), **fields)
    params = {} if cls is Raises else schedule.init(jax.random.key(0), jnp.zeros(1))
    verify.schedule(schedule, params)


@pytest.mark.parametrize("cls", SCHEDULES, ids=lambda cls: cls.__name__)
def test_wrong_schedule_is_refused(cls):
    with pytest.raises(UserError, match=f"^schedule {cls.__name__} .*{SCHEDULES[cls]}"):
        check_schedule(cls)


def test_builtin_schedules_are_not_refused():
    fields = dict(gamma_min=-9.0, gamma_max=5.0)
    for cls in (Line, Bent, *REGISTRIES["schedule"].classes().values()):
        check_schedule(cls, **fields)
    for cls in REGISTRIES["schedule"].classes().values():
        if hasattr(cls, "learn_ends"):
            check_schedule(cls, **fields, learn_ends=True)


@dataclasses.dataclass(frozen=True)
class OfTimes(Times):
    """Uniform times, altered by `change`."""

    change: object = None

    def draw(self, rng, state):
        return self.change(*IID().draw(rng, state))


TIMES = {
    "weights of another density": (lambda t, w: (t**2, jnp.ones_like(t)), r"weights that are not 1/q\(t\)"),
    "weights that do not sum to one": (
        lambda t, w: (t, 2.0 * jnp.ones_like(t)),
        r"weights that are not 1/q\(t\)",
    ),
    "no times at one end": (
        lambda t, w: (0.5 * t, 0.5 * jnp.ones_like(t)),
        "seldom or never draws a time between 0.5 and 0.625",
    ),
    "times outside": (lambda t, w: (2.0 * t, w), "gives times between"),
    "one time for all": (lambda t, w: (t[0], w), "gives t of shape"),
    "no number": (lambda t, w: (t, jnp.log(-t)), "gives weights 1/q"),
    "times alone": (lambda t, w: t, "accepted: two arrays, t and 1/q"),
}


@pytest.mark.parametrize("name", TIMES)
def test_wrong_times_are_refused(name):
    change, words = TIMES[name]
    with pytest.raises(UserError, match=words):
        verify.times(OfTimes(change))


@dataclasses.dataclass(frozen=True)
class OfSampler(Sampler):
    change: object = None

    def sample(self, predict_x, gammas, z_1, keys):
        return self.change(Ancestral().sample(predict_x, gammas, z_1, keys))


SAMPLERS = {
    "levels": (lambda z: z.astype(jnp.uint8), "gives uint8"),
    "another shape": (lambda z: z[0], r"gives float32 \[2, 2, 1\]"),
    "no number": (lambda z: jnp.nan * z, "NaN or infinity"),
    "a pair": (lambda z: (z, z), "gives tuple"),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_wrong_sampler_is_refused(name):
    change, words = SAMPLERS[name]
    with pytest.raises(UserError, match=words):
        verify.sampler(OfSampler(change))


@dataclasses.dataclass(frozen=True)
class OfParameterisation(Parameterisation):
    change: object = None

    def eps_hat(self, net, z_t, gamma, params, vocab_size):
        return self.change(z_t + net(z_t), gamma)


PARAMETERISATIONS = {
    "another shape": (lambda eps, gamma: eps[..., 0], "gives ε̂ as float32"),
    "no number": (lambda eps, gamma: eps * jnp.sqrt(gamma), "NaN or infinity for a network output of 0"),
    "levels": (lambda eps, gamma: eps.astype(jnp.int32), "gives ε̂ as int32"),
    "an error": (lambda eps, gamma: eps @ jnp.zeros((5, 5)), "fails with TypeError"),
}


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_wrong_parameterisation_is_refused(name):
    change, words = PARAMETERISATIONS[name]
    with pytest.raises(UserError, match=words):
        verify.parameterisation(OfParameterisation(change), {}, (2, 2, 1), 17)


@pytest.mark.parametrize(("apart", "change"), [(True, "own"), (False, "mean"), (False, "order")])
def test_images_that_depend_on_each_other_are_refused(apart, change):
    """Also if a fresh network gives zeros because its last layer starts at zero."""
    mix = {
        "own": lambda z: z,
        "mean": lambda z: z - 0.1 * z.mean(axis=0),
        "order": lambda z: z + 0.1 * z[::-1],
    }[change]

    def eps_hat(params, z, gamma):
        return params["last"] * jnp.tanh(mix(z)) * gamma.reshape(-1, 1, 1, 1)

    refused = (
        contextlib.nullcontext() if apart else pytest.raises(UserError, match="^mine gives an ε̂ .* batch")
    )
    with refused:
        verify.images_apart("mine", eps_hat, {"last": jnp.zeros(3)}, (4, 4, 3))


class OwnEps(Eps):
    """ε̂ = output, of a module that is not built in."""


@pytest.mark.parametrize("name, fields", [("diffusion", {"model.condition": "augmented"}), ("mulan", {})])
def test_a_model_with_a_condition_and_an_own_part_is_checked(name, fields):
    """The condition consists of what batches have: whether an image is augmented, and MuLAN's context."""
    fields = {"model.name": name, "model.net.name": "mlp", "model.parameterisation": "eps", **fields}
    schedule = {"model.schedule.name": "multivariate"} if name == "mulan" else {}
    model = run_lib.build_model(make_config(fields | schedule), Spec((4, 4, 1), 17, 0))
    model = dataclasses.replace(model, parameterisation=OwnEps())
    params = model.init(jax.random.key(0), model.example(1))
    model.verify(params)


OBJECTIVES = {
    "no terms": (lambda terms: {}, "gives no term"),
    "the sum of the terms": (lambda terms: sum(terms.values()), "gives a float32 array; accepted: a dict"),
    "a number": (lambda terms: 3.0, "gives a float; accepted: a dict"),
    "the mean over the batch": (
        lambda terms: {"huber": jnp.mean(terms["diffusion"])},
        r"'huber' as float32 \[\]",
    ),
    "Python's number": (lambda terms: {"huber": 1.0}, "'huber' as float;"),
    "another metric's name": (lambda terms: {"bpd": terms["diffusion"]}, "calls a term 'bpd'"),
    "whole numbers": (lambda terms: {"huber": terms["diffusion"].astype(jnp.int32)}, "'huber' as int32"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_wrong_objective_is_refused(name):
    change, words = OBJECTIVES[name]
    with pytest.raises(UserError, match=f"^objective Objective .*{words}"):
        step.check_terms(Objective(), change({"diffusion": jnp.ones(3)}), (3,))


def test_objective_whose_timed_terms_are_absent_is_refused_where_times_adapt():
    with pytest.raises(UserError, match="attribute `timed`.* the terms 'diffusion'; accepted"):
        step.check_timed(Objective(), {"huber": jnp.ones(3)})


def test_builtin_components_are_not_refused():
    for cls in REGISTRIES["times"].classes().values():
        verify.times(cls())
    for cls in REGISTRIES["sampler"].classes().values():
        verify.sampler(cls())
    for cls in REGISTRIES["parameterisation"].classes().values():
        params = cls().init((4, 4, 1))
        verify.parameterisation(cls(), params, (4, 4, 1), 17)
