"""What a meta-learner has learnt, as a value: saved, loaded, and started from."""

from streamlearn.core.priors.prior import Prior

__all__ = ["Prior"]
