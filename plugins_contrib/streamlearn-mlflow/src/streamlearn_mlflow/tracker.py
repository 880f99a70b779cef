"""Options, measurements and files of a run, in MLflow."""

from __future__ import annotations

import importlib
import json
import random
import re
import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pydantic import Field
from streamlearn import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.errors import ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    from streamlearn.core.evaluation import Evaluation
    from streamlearn.core.run import Run

__all__ = ["MLflowTracker", "MissingMLflowError", "measurements", "options_of"]

_PACKAGE = "mlflow"


class MissingMLflowError(MissingExtraError):
    """MLflow is not installed."""

    def __init__(self, user: str) -> None:
        super().__init__(user, _PACKAGE, _PACKAGE)
        self.args = (f"plugin {user} needs the package {_PACKAGE!r}, which is not installed: run  pip install mlflow-skinny",)


def measurements(events: Iterable[Mapping[str, Any]]) -> list[tuple[str, float, int]]:
    """Name, value and update of everything that was measured: what is undefined is left out.

    An evaluation is called ``"<metric>/<set>/<task>"``, its loss ``"loss/<set>/<task>"``; the mean of a loss or a term over an epoch
    ``"train/<row or term>"``. Characters that MLflow does not take become ``_``.

    Example:
        >>> evaluation = {"event": "evaluation", "update": 7, "set_name": "part 0", "task": "a", "metric": "accuracy", "value": 0.5}
        >>> measurements([evaluation, {"event": "epoch", "losses": {"a@x": 1.5}, "terms": {}}])
        [('accuracy/part 0/a', 0.5, 7), ('train/a_x', 1.5, 7)]
    """
    found, update = [], 0
    for event in events:
        if event["event"] == "evaluation":
            update = int(event["update"])
            place = "/".join(part for part in (str(event["set_name"]), str(event["task"])) if part)
            found += [(f"{event['metric']}/{place}", event["value"], update), (f"loss/{place}", event.get("loss"), update)]
        elif event["event"] == "epoch":
            update += int(event.get("updates", 0))
            found += [(f"train/{name}", value, update) for part in ("losses", "terms") for name, value in event[part].items()]
    return [(re.sub(r"[^\w\-. /:]", "_", name), float(value), step) for name, value, step in found if value is not None]


def options_of(run: Run) -> dict[str, str]:
    """The options of the engine, the stream and every plugin, as text.

    A value longer than MLflow takes is cut.
    """
    told: dict[str, Any] = {f"engine.{name}": getattr(run.options, name) for name in run.options.__slots__}
    told |= {"stream.name": run.stream.name, "stream.hash": run.stream.hash, "plugins": [plugin.name for plugin in run.plugins]}
    for plugin in run.plugins:
        told |= {f"{plugin.name}.{option}": value for option, value in plugin.config.model_dump().items()}
    return {name: (value if isinstance(value, str) else json.dumps(value, default=str))[:6000] for name, value in told.items()}


class MLflowTracker(Plugin):
    """What a run does, in MLflow: options, measurements, files.

    Protocol: a run of MLflow is opened when training begins. It gets the options of the engine and of every plugin as parameters, every
    measured value and the mean losses and terms of every epoch as metrics at their updates, and at the end the whole record as the
    artifact ``events.jsonl``. It ends as ``FINISHED``, or as ``FAILED`` with the exception as tag ``error``. A run that was stopped and
    is resumed goes on in the same run of MLflow, and no value is written twice.

    Nothing is global: neither the tracking address nor the active run of MLflow is touched, so that several runs may go on side by side.

    Args:
        uri: where MLflow keeps its runs: an address, or a file as in ``"sqlite:///mlflow.db"``, any that MLflow takes; ``None`` leaves
            it to MLflow (the variable ``MLFLOW_TRACKING_URI``).
        experiment: the experiment of MLflow, any name; made when it is not there.
        run_name: what the run is called, any; ``None`` leaves it to MLflow.

    Raises:
        MissingMLflowError: mlflow is not installed.
        ConfigurationError: MLflow refuses the address, or does not answer.

    Cost: a batch of metrics per evaluation. Memory: none.

    Reference: Zaharia et al., Accelerating the machine learning lifecycle with MLflow, IEEE Data Engineering Bulletin 41(4), 2018.

    Example:
        >>> MLflowTracker(uri="sqlite:///runs.db", experiment="digits")  # doctest: +SKIP
        MLflowTracker(experiment='digits', uri='sqlite:///runs.db')
    """

    info = PluginInfo(
        name="mlflow_tracker",
        family="tracking",
        summary="Writes options, measurements and the record of a run into MLflow.",
        reference="Zaharia et al. 2018, IEEE Data Engineering Bulletin 41(4):39-45",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `MLflowTracker`."""

        uri: str | None = Field(None, min_length=1)
        experiment: str = Field("streamlearn", min_length=1)
        run_name: str | None = Field(None, min_length=1)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        if find_spec(_PACKAGE) is None:
            raise MissingMLflowError(self.name)
        self._run_id = ""
        self._sent = 0  # measurements that lie in MLflow
        self._client: Any = None

    # ------------------------------------------------------------------ what is sent

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Open a run of MLflow, and tell the options."""
        from mlflow.entities import Param

        client = self._connected()
        known = self._asked(client.get_experiment_by_name, self.config.experiment)
        number = known.experiment_id if known is not None else self._asked(client.create_experiment, self.config.experiment)
        opened = self._asked(client.create_run, number, run_name=self.config.run_name)
        self._run_id = opened.info.run_id
        parameters = [Param(name, value) for name, value in options_of(run).items()]
        for first in range(0, len(parameters), 100):  # no more are taken at once
            self._asked(client.log_batch, self._run_id, params=parameters[first : first + 100])

    @hookimpl
    def after_evaluation(self, evaluation: Evaluation) -> None:
        """Send what has been measured since."""
        self._send(evaluation.run)

    @hookimpl
    def after_run(self, run: Run) -> None:
        """Send the rest and the record, and say how it ended; what goes wrong here hides no other error."""
        if not self._run_id:
            return
        try:
            self._finish(run)
        except ConfigurationError as error:
            if run.error is None:
                raise
            run.error.add_note(str(error))

    def _finish(self, run: Run) -> None:
        client = self._connected()
        self._send(run)
        text = "".join(json.dumps(event) + "\n" for event in run.record.events)
        self._asked(client.log_text, self._run_id, text, "events.jsonl")
        if run.error is not None:
            self._asked(client.set_tag, self._run_id, "error", f"{type(run.error).__name__}: {run.error}"[:4000])
        self._asked(client.set_terminated, self._run_id, status="FINISHED" if run.error is None else "FAILED")

    def _send(self, run: Run) -> None:
        from mlflow.entities import Metric

        found = measurements(run.record.events)
        now = int(time.time() * 1000)
        fresh = [Metric(name, value, now, step) for name, value, step in found[self._sent :]]
        for first in range(0, len(fresh), 1000):
            self._asked(self._connected().log_batch, self._run_id, metrics=fresh[first : first + 1000])
        self._sent = len(found)

    # ------------------------------------------------------------------ the connection

    def _connected(self) -> Any:
        if self._client is None:
            tracking = importlib.import_module("mlflow.tracking")
            self._client = self._asked(tracking.MlflowClient, tracking_uri=self.config.uri)
            if self._run_id:
                self._continue()
        return self._client

    def _continue(self) -> None:
        """A resumed run goes on; what was sent after its checkpoint was saved lies there already."""
        self._asked(self._client.update_run, self._run_id, status="RUNNING")
        names = self._asked(self._client.get_run, self._run_id).data.metrics
        there = sum(len(self._asked(self._client.get_metric_history, self._run_id, name)) for name in names)
        self._sent = max(self._sent, there)

    def _asked(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """What MLflow answers. It draws names and identities from Python's global generator, which others seed: that is put back."""
        drawn = random.getstate()
        try:
            return function(*arguments, **options)
        except (OSError, importlib.import_module("mlflow.exceptions").MlflowException) as error:
            where = self.config.uri or "its default address"
            raise ConfigurationError(f"plugin {self.name}: MLflow at {where} refuses: {str(error).splitlines()[0]}; check 'uri'") from error
        finally:
            random.setstate(drawn)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Which run of MLflow this is, and how much has been sent."""
        return {"run_id": self._run_id, "sent": self._sent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._run_id, self._sent, self._client = str(state["run_id"]), int(state["sent"]), None
