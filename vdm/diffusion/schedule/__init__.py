"""Noise schedules: γ(t) = −log SNR(t). A new one is a class that derives from Schedule."""

from vdm.component import Registry
from vdm.diffusion.schedule.base import Schedule, with_slope
from vdm.diffusion.schedule.fixed import Cosine, FixedLinear, LinearBeta, Polynomial, Sigmoid
from vdm.diffusion.schedule.learned import LearnedLinear, LearnedNet, Piecewise
from vdm.diffusion.schedule.moving import MovingNet
from vdm.diffusion.schedule.multivariate import Multivariate

__all__ = ["SCHEDULES", "Schedule", "with_slope"]

SCHEDULES = Registry(
    Schedule,
    {
        "learned_linear": LearnedLinear,
        "fixed_linear": FixedLinear,
        "cosine": Cosine,
        "linear_beta": LinearBeta,
        "sigmoid": Sigmoid,
        "polynomial": Polynomial,
        "learned_net": LearnedNet,
        "piecewise": Piecewise,
        "moving_net": MovingNet,
        "multivariate": Multivariate,
    },
)
