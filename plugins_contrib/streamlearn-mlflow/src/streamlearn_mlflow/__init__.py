"""A run of streamlearn in MLflow."""

from streamlearn_mlflow.tracker import MLflowTracker

__all__ = ["MLflowTracker"]
