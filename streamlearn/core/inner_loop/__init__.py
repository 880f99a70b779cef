"""Learning within a step: inner rules, the gradient through them, and how many episodes are gone through at once.

Three things can be chosen independently. The *rule* (`rules`) says how a gradient becomes a step; the *estimator* (`estimators`) how
the result depends on where it started; the *executor* (`executors`) whether episodes are gone through one by one or all at once.
"""

from streamlearn.core.inner_loop.estimators import Estimator, Implicit, adapt
from streamlearn.core.inner_loop.executors import Executor, over_episodes, why_one_by_one
from streamlearn.core.inner_loop.learner import EpisodeLearner, EpisodeOptions, UnrolledLearner, UnrolledOptions
from streamlearn.core.inner_loop.rules import Adam, GradientDescent, InnerRule, Momentum, Rates

__all__ = [
    "Adam",
    "EpisodeLearner",
    "EpisodeOptions",
    "Estimator",
    "Executor",
    "GradientDescent",
    "Implicit",
    "InnerRule",
    "Momentum",
    "Rates",
    "UnrolledLearner",
    "UnrolledOptions",
    "adapt",
    "over_episodes",
    "why_one_by_one",
]
